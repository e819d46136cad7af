"""Outgoing HTTP: the transport, the hosts that images may come from, and the clients that are made of both."""
