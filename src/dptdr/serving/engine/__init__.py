"""The engine, which encodes texts of all tasks in shared batches."""
