"""The stages behind ``import dptdr``; the command line calls the same functions."""
