"""Vector folders."""
