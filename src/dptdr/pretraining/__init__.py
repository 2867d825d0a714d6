"""Pretraining on bare texts."""
