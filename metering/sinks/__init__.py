"""Sinks: receivers of metering events, each with its profile, its envelope and its own task (rule 36)."""
