"""Stores for images, one file each; what looks after them; the spool."""
