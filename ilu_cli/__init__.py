"""ilu: unlearn a language model, attack it, measure what is left, and explain it."""

__version__ = "0.1.0"
