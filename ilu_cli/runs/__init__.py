"""Run folders: what was done, from what, with which hashes. Nothing here imports torch."""
