"""Task vectors: differences of checkpoints, streamed tensor by tensor."""
