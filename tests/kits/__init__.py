"""Parts of tests: servers, systems, books, clients, crowds."""
