"""Indexes in databases."""
