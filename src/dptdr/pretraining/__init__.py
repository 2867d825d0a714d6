"""Pretraining on unlabelled texts."""
