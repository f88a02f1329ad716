"""The one training loop, the one accelerator, and what they need."""
