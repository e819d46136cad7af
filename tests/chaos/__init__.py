"""The system under random faults, and a judge that believes only what the clients saw, the books and the store."""
