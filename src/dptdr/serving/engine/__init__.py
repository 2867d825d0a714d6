"""The engine: batches of texts of all tasks."""
