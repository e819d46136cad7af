"""The command `ghub`, one file per noun."""
