"""How sinks and webhooks are reached: over HTTP, and over NATS."""
