"""The public API behind ``import dptdr``, which the command line also uses."""
