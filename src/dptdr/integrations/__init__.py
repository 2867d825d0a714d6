"""Encoders for other tools; each module needs the package in its name."""
