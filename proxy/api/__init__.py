"""The HTTP surface, an endpoint a file; `images.py` is the hot path."""
