"""One file for each upstream. Each knows its wire format, and none of the others."""
