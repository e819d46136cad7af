"""Clients' connections: HTTP/1.1 on our own sockets, every one with limits."""
