"""How sinks are reached: over HTTP, and over NATS."""
