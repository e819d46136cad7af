"""Money, orders and events. Knows no HTTP."""
