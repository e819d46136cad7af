"""The gateway: what a customer asks for, made, stored and charged."""
