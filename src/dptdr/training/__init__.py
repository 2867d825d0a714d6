"""Losses, GradCache, distributed training, the training loop and checkpoint selection."""
