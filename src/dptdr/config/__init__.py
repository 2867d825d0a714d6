"""Settings as frozen dataclasses; no torch."""
