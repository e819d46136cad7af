"""One order, from bytes to its charge. Knows no HTTP."""
