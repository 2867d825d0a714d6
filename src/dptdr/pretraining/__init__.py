"""The pretraining room."""
