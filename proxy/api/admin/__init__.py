"""The admin API, and what operators read of the record."""
