"""Clients' connections: HTTP/1.1 on sockets of our own, every one within bounds."""
