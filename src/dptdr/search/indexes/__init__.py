"""The indexes room."""
