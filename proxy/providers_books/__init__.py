"""Providers' own books: what they say that they bill, by HTTP or in a file."""
