"""Settings, the catalogue, plans and seed rates. Reads files and nothing else."""
