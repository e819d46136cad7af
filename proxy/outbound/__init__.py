"""Outgoing HTTP: the transport, the allowed image hosts, and the clients that use both."""
