"""Vectors, indexes, databases, BM25, hybrid search, re-ranking."""
