"""Settings, the catalogue, plans and seed rates. It only reads files."""
