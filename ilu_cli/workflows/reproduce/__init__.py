"""`ilu reproduce`: a run again from its manifest, and where the two part."""
