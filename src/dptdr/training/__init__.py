"""Losses, GradCache, processes, the training loop, checkpoint selection."""
