"""Integrations with other libraries; each module requires the package it is named after."""

from pathlib import Path

from dptdr.config.arguments import checked
from dptdr.model.bundle import load_encoder
from dptdr.model.encoder import Encoder


@checked
def as_encoder(encoder: Encoder | Path | str) -> Encoder:
    """Return a loaded task, loading it if given as a folder."""
    return load_encoder(task=Path(encoder)) if isinstance(encoder, Path | str) else encoder
