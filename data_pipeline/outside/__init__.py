"""What comes from outside, opened, bounded and shown. It imports only Python's own library and PyYAML."""
