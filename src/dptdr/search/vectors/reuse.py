"""Reuse vectors of unchanged passages."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32

from dptdr.io.probe import same_probe
from dptdr.search.retrieve import TextEncoder, probe_of, weights_of
from dptdr.search.vectors.folder import VectorFolder


class KnownVectors:
    """Vectors from an earlier folder, looked up by passage content.

    Args:
        folder: The earlier folder, or None to start empty.
        encoder: The current encoder; a folder with a different passage fingerprint is ignored.
    """

    def __init__(self, folder: VectorFolder | None, *, encoder: TextEncoder, dtype: str) -> None:
        self.folder = folder
        if folder is not None:
            origin = folder.manifest.origin
            fits = (origin.passage_fingerprint, origin.weights) == (
                encoder.passage_fingerprint,
                weights_of(encoder),
            )
            fits = fits and same_probe(origin.probe, probe_of(encoder))
            if not fits or origin.dim != encoder.dim or origin.dtype not in (dtype, "float32"):
                self.folder = None
        self.dim = encoder.dim
        self._keys = np.empty((0, 2), dtype=np.uint64)
        self._rows = np.empty(0, dtype=np.int64)
        if self.folder is not None:
            contents = (document.passage.content for document in self.folder.all_documents())
            keys = np.concatenate([content_keys(batch) for batch in _batches(contents)])
            self._rows = np.lexsort((keys[:, 1], keys[:, 0])).astype(np.int64)
            self._keys = keys[self._rows]

    def take(self, contents: Sequence[str]) -> Float32[np.ndarray, "texts dim"]:
        """Return the vectors of known texts, and NaN for unknown ones."""
        vectors = np.full((len(contents), self.dim), np.nan, dtype=np.float32)
        if self.folder is None or not contents:
            return vectors
        keys = content_keys(contents)
        places = np.searchsorted(self._keys[:, 0], keys[:, 0])
        places = np.minimum(places, len(self._keys) - 1)
        same = (self._keys[places] == keys).all(axis=1)
        if same.any():
            vectors[same] = self.folder.gather(self._rows[places[same]])
        return vectors


def _batches(contents: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(contents, 8192)):
        yield batch


def content_keys(contents: Sequence[str]) -> np.ndarray:
    """Hash each text to a 128-bit key, as two uint64."""
    digests = b"".join(
        hashlib.blake2b(content.encode("utf-8"), digest_size=16).digest() for content in contents
    )
    return np.frombuffer(digests, dtype=np.uint64).reshape(len(contents), 2)
