"""The vectors room."""
