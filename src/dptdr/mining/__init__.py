"""The mining room."""
