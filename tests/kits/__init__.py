"""What tests are made of: servers, systems, books, clients, crowds."""
