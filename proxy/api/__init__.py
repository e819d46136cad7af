"""The HTTP surface, one file for each endpoint; `images.py` is the hot path."""
