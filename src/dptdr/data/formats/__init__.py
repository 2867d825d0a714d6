"""Readers for other formats, and conversion to data folders."""
