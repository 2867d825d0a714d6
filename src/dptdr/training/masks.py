"""Decide which passages of the global batch count for which query."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dptdr.io.ids import stable_hash


def text_hash(text: str) -> int:
    """Hash a text to 63 bits, to find duplicates across ranks."""
    return stable_hash(text) >> 1


class Masks(NamedTuple):
    """Masks and teacher scores of shape ``[queries, passages]``."""

    positive: Tensor
    ignored: Tensor
    teacher: Tensor
    scored: Tensor


class Example(NamedTuple):
    """A query's known positives and teacher scores, by local passage index.

    Args:
        positive: Passages to be retrieved.
        teacher: Teacher score by passage.
    """

    positive: Sequence[int]
    known: frozenset[int]
    teacher: Mapping[int, float]


class InBatchCandidates:
    """The passages of all ranks, identified by hash."""

    def __init__(self, hashes: Sequence[int], *, offset: int = 0) -> None:
        self.hashes = list(hashes)
        self.offset = offset
        self._first: dict[int, int] = {}
        self._copies = np.zeros(len(self.hashes), dtype=bool)
        for column, value in enumerate(self.hashes):
            # If several ranks have the same passage, only the first copy counts.
            self._copies[column] = value in self._first
            self._first.setdefault(value, column)

    def __len__(self) -> int:
        """Number of passages in the global batch."""
        return len(self.hashes)

    def place(self, column: int) -> int:
        """Return the global column of a local passage."""
        return self._first[self.hashes[self.offset + column]]

    def masks(self, rows: Sequence[Example], *, device: torch.device) -> Masks:
        """Build the masks of some queries.

        Returns:
            Masks of shape ``[queries, passages]``, over the passages of all ranks.
        """
        shape = (len(rows), len(self))
        positive, scored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        ignored = np.broadcast_to(self._copies, shape).copy()
        teacher = np.zeros(shape, dtype=np.float32)
        for number, row in enumerate(rows):
            for value in row.known:
                if value in self._first:
                    ignored[number, self._first[value]] = True
            for column in row.positive:
                positive[number, self.place(column)] = True
            for column, score in row.teacher.items():
                place = self.place(column)
                teacher[number, place], scored[number, place] = score, True
        return Masks(
            *(torch.from_numpy(made).to(device) for made in (positive, ignored, teacher, scored))
        )
