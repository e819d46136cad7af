"""Images while they are streamed. Pure."""
