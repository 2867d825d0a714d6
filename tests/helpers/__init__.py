"""Shared by the tests: tiny random encoders and hand-written references."""
