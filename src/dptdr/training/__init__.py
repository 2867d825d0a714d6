"""The training room: losses, GradCache, processes, one loop, checkpoint selection."""
