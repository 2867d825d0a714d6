"""Settings and recipes as frozen dataclasses; no torch."""
