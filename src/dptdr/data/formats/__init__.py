"""Readers of other formats, and conversion to data folders."""
