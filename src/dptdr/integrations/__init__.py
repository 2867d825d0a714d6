"""Encoders in the interfaces of other tools; each module needs the package that it is named for."""
