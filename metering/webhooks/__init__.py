"""Webhooks: what organisations are told of long orders, balances, limits, keys and models, signed and delivered."""
