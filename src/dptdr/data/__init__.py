"""Data sets: formats, samples, subsampling, merging and inspection."""
