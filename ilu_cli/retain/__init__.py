"""Terms that keep what must be kept, one per file. Same contract as an objective, over the retain data."""
