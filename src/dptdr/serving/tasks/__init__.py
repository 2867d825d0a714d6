"""Served tasks: registry, catalogue, prompt cache and indexes."""
