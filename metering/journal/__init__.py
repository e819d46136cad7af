"""Orders that a gateway has answered 200, kept on its own disk until the ledger has them."""
