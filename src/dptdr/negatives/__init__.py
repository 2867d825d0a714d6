"""The negatives room."""
