"""Exports for finance, a file for each format. All of them have the same rows (`rows.py`), but for FOCUS."""
