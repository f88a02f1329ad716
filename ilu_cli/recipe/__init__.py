"""Recipes: strict YAML, one schema, and errors that name the line. Nothing here imports torch."""
