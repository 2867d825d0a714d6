"""File input and output: formats, atomic writes, resumable outputs and compact ids."""
