"""The record: SQL in `.sql` files, on SQLite or PostgreSQL."""
