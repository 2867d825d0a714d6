"""Formats, sample data and checks of data sets."""
