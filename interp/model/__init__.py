"""The transformer, and its checkpoints on disk."""
