"""Wallets and events in Redis: one `.lua` script for each step."""
