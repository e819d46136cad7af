"""Stores for images, one file each; their monitoring; the spool."""
