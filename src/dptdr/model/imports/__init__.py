"""Import checkpoints of other programs."""
