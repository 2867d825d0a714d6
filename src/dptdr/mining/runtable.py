"""Runs stored as arrays on disk, for any number of queries."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64, UInt64

from dptdr.errors import DataError
from dptdr.io.atomic import atomic_file, read_json, sha256_file, write_json
from dptdr.io.ids import RowTable, stable_hash
from dptdr.io.trec import RunLine, iterate_run_lines
from dptdr.mining.corpus import CorpusTable

FORMAT = 2
HEADER = "run.json"
_HIT = np.dtype([("row", "<i4"), ("score", "<f8")])
_SPAN = np.dtype([("query", "<u8"), ("start", "<i8"), ("end", "<i8")])


class Ranking(NamedTuple):
    """One query's hits in a run, best first; ranks start at 1."""

    rows: Int64[np.ndarray, " hits"]
    scores: Float[np.ndarray, " hits"]


class RunTable:
    """A run stored on disk.

    Raises:
        DataError: If the folder is missing, incomplete or in another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        header = read_json(self.path / HEADER)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise DataError(f"expected a run table of format {FORMAT}", path=self.path)
        try:
            self.fingerprint = str(header["fingerprint"])
            parts = range(int(header["parts"]))
            for part in parts:
                self._check_sums(part)
            self._hits = [self._part(f"{part:05d}.hits", _HIT) for part in parts]
            tables = [self._part(f"{part:05d}.spans", _SPAN) for part in parts]
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(
                f"the run table is damaged ({error}); remove it", path=self.path
            ) from None
        for hits, table in zip(self._hits, tables, strict=True):
            if (table["start"] < 0).any() or (table["end"] > len(hits)).any():
                raise DataError(
                    "the run table is damaged (spans out of range); remove it", path=self.path
                )
        self._spans = np.concatenate([np.zeros(0, dtype=_SPAN), *tables])
        self._parts = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        self._queries = RowTable(self._spans["query"])

    def _check_sums(self, part: int) -> None:
        for name, digest in read_json(self.path / f"{part:05d}.json").items():
            if sha256_file(self.path / name) != digest:
                raise DataError(
                    f"the run table is damaged (checksum of {name}); remove it", path=self.path
                )

    def _part(self, name: str, dtype: np.dtype[Any]) -> np.ndarray:
        path = self.path / name
        if path.stat().st_size == 0:
            return np.zeros(0, dtype=dtype)
        return np.memmap(path, dtype=dtype, mode="r")

    def query_hashes(self) -> UInt64[np.ndarray, " queries"]:
        """Return the sorted hashes of the run's query ids."""
        return self._queries.hashes()

    def ranking(self, query_id: str, *, depth: int) -> Ranking | None:
        """Return a query's top hits, or ``None`` if the run lacks the query.

        Args:
            depth: Maximum number of hits.

        Raises:
            DataError: If the run lists a passage twice for the query.
        """
        # A query may have several spans, as its lines need not be contiguous in a run file.
        spans = self._queries.rows(query_id)
        if not len(spans):
            return None
        hits = np.concatenate(
            [
                self._hits[self._parts[at]][self._spans[at]["start"] : self._spans[at]["end"]]
                for at in spans
            ]
        )
        if len(spans) > 1:
            hits = hits[np.argsort(-hits["score"], kind="stable")]
            if len(np.unique(hits["row"])) < len(hits):
                raise DataError(
                    f"the run table is damaged (query '{query_id}' lists a passage twice); "
                    "remove it",
                    path=self.path,
                )
        return Ranking(hits["row"][:depth].astype(np.int64), np.array(hits["score"][:depth]))


class RunTableWriter:
    """Writes a run table in parts, and can resume after the last one.

    Args:
        path: The folder; partial work with another fingerprint is discarded.
    """

    def __init__(self, path: Path, *, fingerprint: str) -> None:
        self.path = Path(path)
        plan = self.path / "plan.json"
        begun = read_json(plan) if plan.is_file() else None
        if begun != {"format": FORMAT, "fingerprint": fingerprint}:
            shutil.rmtree(self.path, ignore_errors=True)
            write_json(plan, {"format": FORMAT, "fingerprint": fingerprint})
        self.fingerprint = fingerprint
        self.parts = 0
        while self._sums_path(self.parts).is_file():
            self.parts += 1

    @property
    def finished(self) -> bool:
        """True if the run is complete."""
        return (self.path / HEADER).is_file()

    def write_part(self, rankings: Iterable[tuple[str, Any, Any]]) -> None:
        """Write the next part, atomically.

        Args:
            rankings: Query id, corpus rows (best first) and scores of each query.
        """
        spans: list[tuple[int, int, int]] = []
        position = 0
        names = [f"{self.parts:05d}.hits", f"{self.parts:05d}.spans"]
        with atomic_file(self.path / names[0]) as handle:
            for query_id, rows, scores in rankings:
                block = np.empty(len(rows), dtype=_HIT)
                block["row"], block["score"] = rows, scores
                handle.write(block.tobytes())
                spans.append((stable_hash(query_id), position, position + len(rows)))
                position += len(rows)
        with atomic_file(self.path / names[1]) as handle:
            handle.write(np.array(spans, dtype=_SPAN).tobytes())
        # Written last, so that a part with checksums is complete.
        sums = {name: sha256_file(self.path / name) for name in names}
        write_json(self._sums_path(self.parts), sums)
        self.parts += 1

    def finish(self) -> RunTable:
        """Mark the run as complete."""
        header = {"format": FORMAT, "fingerprint": self.fingerprint, "parts": self.parts}
        write_json(self.path / HEADER, header)
        return RunTable(self.path)

    def _sums_path(self, part: int) -> Path:
        return self.path / f"{part:05d}.json"


def import_run(
    path: Path,
    *,
    run: Path,
    corpus: CorpusTable,
    fingerprint: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> RunTable:
    """Convert a TREC run file to a run table, validating every line.

    Args:
        corpus: The corpus of the passage ids.

    Raises:
        DataError: If a line is malformed, its passage is unknown or already listed for the query,
            or the file is empty; names file and line.
    """
    writer = RunTableWriter(path, fingerprint=fingerprint)
    if writer.finished:
        return RunTable(path)
    # Rereading a file is fast, so it is one part and starts over if interrupted.
    writer.parts = 0
    writer.write_part(_rankings(Path(run), corpus=corpus, on_progress=on_progress))
    return writer.finish()


def _rankings(
    run: Path, *, corpus: CorpusTable, on_progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, Any, Any]]:
    seen: set[str] = set()
    scattered: set[str] = set()
    for query_id, group in groupby(iterate_run_lines(run), key=lambda item: item[1].query_id):
        (scattered if query_id in seen else seen).add(query_id)
        numbered = list(group)
        rows = _known_rows(numbered, run=run, corpus=corpus)
        order = sorted(
            range(len(numbered)), key=lambda at: (-numbered[at][1].score, numbered[at][1].rank)
        )
        scores = np.array([numbered[at][1].score for at in order])
        if on_progress is not None:
            on_progress(numbered[-1][0], numbered[-1][0])
        yield query_id, rows[order], scores
    if scattered:
        lines = [item for item in iterate_run_lines(run) if item[1].query_id in scattered]
        for _, group in groupby(
            sorted(lines, key=lambda item: item[1].query_id), key=lambda item: item[1].query_id
        ):
            _refuse_repeated(list(group), run=run)


def _known_rows(
    numbered: Sequence[tuple[int, RunLine]], *, run: Path, corpus: CorpusTable
) -> Int64[np.ndarray, " hits"]:
    rows = corpus.rows_of([line.passage_id for _, line in numbered])
    unknown = np.flatnonzero(rows < 0)
    if len(unknown):
        number, line = numbered[int(unknown[0])]
        raise DataError(
            f"passage '{line.passage_id}' is not in the corpus; use a run over this data",
            path=run,
            line=number,
        )
    if len(np.unique(rows)) < len(rows):
        _refuse_repeated(numbered, run=run)
    return rows


def _refuse_repeated(numbered: Sequence[tuple[int, RunLine]], *, run: Path) -> None:
    """Reject a passage that a query lists twice."""
    seen: set[str] = set()
    for number, line in numbered:
        if line.passage_id in seen:
            raise DataError(
                f"query '{line.query_id}' lists passage '{line.passage_id}' a second time",
                path=run,
                line=number,
            )
        seen.add(line.passage_id)
