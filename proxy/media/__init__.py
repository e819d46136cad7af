"""Images while they stream by. Pure."""
