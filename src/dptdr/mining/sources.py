"""Runs and teachers for mining, from BM25, encoders and files, each created once."""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from dptdr.errors import ConfigError, DataError
from dptdr.io.atomic import sha256_file
from dptdr.io.beir import BeirFolder
from dptdr.io.trec import judgements
from dptdr.mining.corpus import CorpusTable, JudgementTable
from dptdr.mining.runtable import RunTable, RunTableWriter, import_run
from dptdr.mining.settings import SourceSettings
from dptdr.mining.teachers import CrossEncoderTeacher, EncoderTeacher, FileTeacher, Teacher
from dptdr.records import Query
from dptdr.search.bm25 import K1, B, Bm25Index
from dptdr.search.exact import top_k_of_blocks
from dptdr.search.retrieve import probe_of
from dptdr.search.vectors.encoding import encode_data
from dptdr.search.vectors.folder import VectorFolder
from dptdr.search.words import AUTO, check_language

if TYPE_CHECKING:
    from dptdr.model import Encoder

    Encoders: TypeAlias = dict[tuple[str, str], Encoder]

TEACHERS = "cross-encoder:NAME, task:FOLDER[,FOLDER], backbone:NAME or file:RUN"
_QUERIES_PER_PART = 4_096


class Machine(NamedTuple):
    """Device, dtype and threads."""

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1


@dataclass(kw_only=True)
class MiningContext:
    """Creates the runs of one data folder and split."""

    folder: BeirFolder
    split: str
    fingerprint: str
    """Fingerprint of corpus, queries and judgements."""
    corpus_fingerprint: str
    corpus: CorpusTable
    judgements: JudgementTable
    work: Path
    """Folder for partial results."""
    cache: Path
    """Cache folder for corpus vectors and the BM25 index."""
    machine: Machine
    show: Callable[[str], Any]
    """Returns a progress callback for a named task."""
    encoders: "Encoders" = field(default_factory=dict)
    """Loaded encoders by kind and value."""
    verified: set[str] = field(default_factory=set)
    """Names of cached vectors whose checksums have been verified."""

    def runs(self, sources: Sequence[SourceSettings]) -> dict[str, RunTable]:
        """Return each source's run over the judged queries, by name.

        Sources that differ only in ranks share one run, with the largest depth.
        """
        depths: dict[tuple[str, str], int] = {}
        for source in sources:
            key = (source.kind, source.value)
            depths[key] = max(depths.get(key, 0), source.range_max)
        made = {key: self._run(*key, depth=depth) for key, depth in depths.items()}
        return {source.name: made[source.kind, source.value] for source in sources}

    def _run(self, kind: str, value: str, *, depth: int) -> RunTable:
        # Values may contain characters invalid in file names, so use a hash.
        label = hashlib.sha256(f"{kind}:{value}".encode()).hexdigest()[:16]
        path = self.work / "runs" / f"{self.split}-{label}"
        if kind == "run":
            return self._import(path, Path(value))
        if kind == "bm25":
            return self._bm25(path, language=value or AUTO, depth=depth)
        return self._dense(path, kind, value, depth=depth)

    def teacher(self, text: str) -> Teacher:
        """Create the teacher named by an option, one of :data:`TEACHERS`.

        Raises:
            ConfigError: If the option is invalid.
        """
        kind, _, value = text.partition(":")
        if not value or kind not in ("cross-encoder", "task", "backbone", "file"):
            raise ConfigError(f"teacher '{text}': expected {TEACHERS}")
        if kind == "cross-encoder":
            return CrossEncoderTeacher(value, device=self.machine.device)
        if kind == "file":
            table = self._import(self.work / "runs" / "teacher", Path(value))
            return FileTeacher(table, name=f"file:{Path(value).name}", corpus=self.corpus)
        encoders = [self._encoder(kind, one) for one in _names(kind, value)]
        members = [
            (encoder.encode_queries, self.vectors(encoder), _identity(encoder))
            for encoder in encoders
        ]
        names = ",".join(encoder.name for encoder in encoders)
        return EncoderTeacher(members, name=f"{kind}:{names}")

    def vectors(self, encoder: "Encoder") -> VectorFolder:
        """Return the corpus vectors, shared by encoders with the same passage side."""
        name = f"vectors-{encoder.passage_fingerprint[:16]}-{self.corpus_fingerprint[:16]}"
        if self.machine.dtype != "float32":
            name += f"-{self.machine.dtype}"
        with self.show(f"encode with {encoder.name}") as on_progress:
            folder = encode_data(
                encoder, self.folder.path, out=self.cache / name, on_progress=on_progress
            )
        # A cache may be old; what is damaged must not become negatives.
        if name not in self.verified:
            folder.verify()
            self.verified.add(name)
        return folder

    def _encoder(self, kind: str, value: str) -> "Encoder":
        return load_source(kind, value, machine=self.machine, encoders=self.encoders)

    def _import(self, path: Path, run: Path) -> RunTable:
        if not run.is_file():
            raise DataError("no such file", path=run)
        with self.show(f"read {run.name}") as on_progress:
            return import_run(
                path,
                run=run,
                corpus=self.corpus,
                fingerprint=_digest(self.fingerprint, sha256_file(run)),
                on_progress=on_progress,
            )

    def _bm25(self, path: Path, *, language: str, depth: int) -> RunTable:
        writer = RunTableWriter(
            path, fingerprint=_digest(self.fingerprint, f"bm25 {language}", f"{K1} {B} {depth}")
        )
        if writer.finished:
            return RunTable(path)
        stored = self.cache / f"bm25-{language}-{self.corpus_fingerprint[:16]}"
        if not stored.is_dir():
            with self.show("index for BM25") as on_progress:
                Bm25Index.build(
                    self.folder.passages(), language=language, on_progress=on_progress
                ).save(stored)
        index = Bm25Index.load(stored, verify=True)
        with self.show("search with BM25") as on_progress:
            for queries in self._parts(writer, on_progress=on_progress):
                hits = index.search_rows(queries, depth=depth, threads=self.machine.threads)
                writer.write_part(
                    (query.id, rows, scores)
                    for query, (rows, scores) in zip(queries, hits, strict=True)
                )
        return writer.finish()

    def _dense(self, path: Path, kind: str, value: str, *, depth: int) -> RunTable:
        encoder = self._encoder(kind, value)
        writer = RunTableWriter(
            path,
            fingerprint=_digest(
                self.fingerprint,
                _identity(encoder),
                self.machine.dtype,
                " ".join(f"{value:.2f}" for value in probe_of(encoder)),
                str(depth),
            ),
        )
        if writer.finished:
            return RunTable(path)
        vectors = self.vectors(encoder)
        with self.show(f"search with {encoder.name}") as on_progress:
            for queries in self._parts(writer, on_progress=on_progress):
                encoded = encoder.encode_queries([query.text for query in queries])
                scores, rows = top_k_of_blocks(encoded, vectors.blocks(), depth=depth)
                writer.write_part(
                    (query.id, rows[at], scores[at]) for at, query in enumerate(queries)
                )
        return writer.finish()

    def _parts(
        self, writer: RunTableWriter, *, on_progress: Callable[[int, int], None]
    ) -> Iterator[list[Query]]:
        """Yield the judged queries in parts, starting at the first unwritten one."""
        judged = (q for q in self.folder.queries() if self.judgements.of(q.id) is not None)
        left = itertools.islice(judged, writer.parts * _QUERIES_PER_PART, None)
        while queries := list(itertools.islice(left, _QUERIES_PER_PART)):
            yield queries
            total = self.judgements.queries
            on_progress(min(total, writer.parts * _QUERIES_PER_PART), total)


def source_probe(
    kind: str, value: str, *, machine: Machine, encoders: "Encoders"
) -> tuple[float, ...]:
    """Return the probes of the backbones of a source or teacher, empty if it has none."""
    if kind not in ("task", "backbone"):
        return ()
    load = functools.partial(load_source, kind, machine=machine, encoders=encoders)
    return tuple(number for one in _names(kind, value) for number in probe_of(load(one)))


def source_identity(kind: str, value: str, *, machine: Machine, encoders: "Encoders") -> str:
    """Compute a fingerprint of a source's or teacher's content.

    Encoders are loaded as needed and added to ``encoders``.

    Raises:
        DataError: If a run file is missing.
    """
    if kind == "bm25":
        language = check_language(value or AUTO)
        return f"{K1} {B}" if language == AUTO else f"{K1} {B} {language}"
    if kind in ("run", "file"):
        if not Path(value).is_file():
            raise DataError("no such file", path=value)
        return sha256_file(Path(value))
    if kind not in ("task", "backbone"):
        return value
    load = functools.partial(load_source, kind, machine=machine, encoders=encoders)
    return " ".join(_identity(load(one)) for one in _names(kind, value))


def load_source(kind: str, value: str, *, machine: Machine, encoders: "Encoders") -> "Encoder":
    """Return a source's or teacher's encoder, loading it once."""
    from dptdr.model import load_encoder

    if (kind, value) not in encoders:
        name: dict[str, Any] = {"task": Path(value)} if kind == "task" else {"backbone": value}
        encoder = load_encoder(**name, device=machine.device, dtype=machine.dtype)
        encoder.eval()
        encoders[kind, value] = encoder
    return encoders[kind, value]


def open_context(
    folder: BeirFolder,
    *,
    split: str,
    work: Path,
    cache: Path,
    machine: Machine,
    show: Callable[[str], Any],
    encoders: "Encoders | None" = None,
    corpus: CorpusTable | None = None,
) -> MiningContext:
    """Read judgements and corpus; see :class:`MiningContext`.

    Raises:
        DataError: If the split is missing or a file is malformed.
    """
    if not folder.has_split(split):
        have = ", ".join(folder.splits()) or "none"
        raise DataError(
            f"no split '{split}'; this folder has {have}", path=folder.qrels_path(split)
        )
    if corpus is None:
        with show("read the corpus") as on_progress:
            corpus = CorpusTable.build(folder.passages(), on_progress=on_progress)
    triples = (judgement for _, judgement in judgements(folder.qrels_path(split)))
    table = JudgementTable.build(triples, corpus=corpus)
    if table.conflicting:
        # The table has hashes only; this names the line.
        folder.qrels(split)
    return MiningContext(
        folder=folder,
        split=split,
        fingerprint=folder.fingerprint(),
        corpus_fingerprint=sha256_file(folder.corpus_path),
        corpus=corpus,
        judgements=table,
        work=work,
        cache=cache,
        machine=machine,
        show=show,
        encoders={} if encoders is None else encoders,
    )


def _names(kind: str, value: str) -> list[str]:
    return value.split(",") if kind == "task" else [value]


def _identity(encoder: "Encoder") -> str:
    return f"{encoder.query_fingerprint} {encoder.passage_fingerprint}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8")).hexdigest()
