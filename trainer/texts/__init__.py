"""Encodes captions to token embeddings with an encoder of Hugging Face; the only folder that knows transformers."""
