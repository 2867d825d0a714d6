"""Import of other programs' checkpoints."""
