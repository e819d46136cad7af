"""The admin API, and the rows of the ledger that operators read."""
