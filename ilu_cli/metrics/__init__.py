"""Measures of forgetting and utility: pure functions of numbers and texts, apart from models and files."""
