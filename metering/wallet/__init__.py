"""Wallets and events in Redis: one `.lua` script a step."""
