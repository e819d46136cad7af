"""Orders that a gateway has answered 200, on its own disk until the ledger has them."""
