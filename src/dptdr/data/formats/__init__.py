"""Readers of other projects' files, and their conversion to data folders."""
