"""Indexes in local folders."""
