"""lm-eval: its tasks as benchmarks of ours, and our scoring as a backend of its."""
