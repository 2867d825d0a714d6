"""dptdr: one frozen text encoder, any number of retrieval services.

The public names live in the rooms; this module imports nothing heavy, so that ``dptdr --help``
stays quick.
"""

__version__ = "0.1.0"
