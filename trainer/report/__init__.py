"""Self-contained HTML pages: tables, curves and moving pictures in one file without outside references."""
