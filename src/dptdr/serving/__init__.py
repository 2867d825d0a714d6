"""The HTTP server for retrieval tasks."""
