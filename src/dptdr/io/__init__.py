"""Readers and writers of files: formats, atomic and resumable outputs, ids."""
