"""Vector folders, indexes, databases, BM25, hybrid search and re-ranking."""
