"""Rows, token ids, and the order they come in."""
