"""The ledger against the books of providers. Pure: facts in, findings out."""
