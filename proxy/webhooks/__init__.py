"""How webhooks are reached: which addresses they may have, and the request that carries an event."""
