"""Runs and teachers for mining: BM25, encoders and files, each made once and found again."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from dptdr.errors import ConfigError
from dptdr.search.words import AUTO, check_language

if TYPE_CHECKING:
    from dptdr.io.beir import BeirFolder
    from dptdr.mining.corpus import CorpusTable, JudgementTable
    from dptdr.mining.runtable import RunTable, RunTableWriter
    from dptdr.mining.settings import SourceSettings
    from dptdr.mining.teachers import Teacher
    from dptdr.model import Encoder
    from dptdr.records import Query
    from dptdr.search.vectors.folder import VectorFolder

    Encoders: TypeAlias = dict[tuple[str, str], Encoder]

TEACHERS = "cross-encoder:NAME, task:FOLDER[,FOLDER], backbone:NAME or file:RUN"
_QUERIES_PER_PART = 4_096


class Machine(NamedTuple):
    """What encoders and BM25 run on."""

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1


@dataclass(kw_only=True)
class MiningContext:
    """Where runs are made from one data folder and one split.

    Attributes:
        folder: The data.
        fingerprint: Identifies its corpus, queries and judgements.
        corpus_fingerprint: Identifies its corpus.
        corpus: Its ids and text hashes.
        judgements: The split's judgements.
        work: Folder of the unfinished work.
        cache: Folder where corpus vectors and the BM25 index are kept.
        machine: What encoders run on.
        show: Gives a progress callable for a piece of work.
        encoders: Kind and value to the encoders that are loaded.
    """

    folder: "BeirFolder"
    fingerprint: str
    corpus_fingerprint: str
    corpus: "CorpusTable"
    judgements: "JudgementTable"
    work: Path
    cache: Path
    machine: Machine
    show: Callable[[str], Any]
    encoders: "Encoders" = field(default_factory=dict)

    def runs(self, sources: "Sequence[SourceSettings]", *, split: str) -> "dict[str, RunTable]":
        """Return the runs of sources over the judged queries, made now or found finished.

        Sources that differ in their ranks alone share one run, as deep as the deepest.

        Args:
            split: Name of the split, so that runs of two splits do not meet.

        Returns:
            Source name to run.
        """
        depths: dict[tuple[str, str], int] = {}
        for source in sources:
            key = (source.kind, source.value)
            depths[key] = max(depths.get(key, 0), source.range_max)
        made = {key: self._run(*key, depth=depth, split=split) for key, depth in depths.items()}
        return {source.name: made[source.kind, source.value] for source in sources}

    def _run(self, kind: str, value: str, *, depth: int, split: str) -> "RunTable":
        # A value may hold what no file name can; its hash always fits.
        label = hashlib.sha256(f"{kind}:{value}".encode()).hexdigest()[:16]
        path = self.work / "runs" / f"{split}-{label}"
        if kind == "run":
            return self._import(path, Path(value))
        if kind == "bm25":
            return self._bm25(path, language=value or AUTO, depth=depth)
        return self._dense(path, kind, value, depth=depth)

    def teacher(self, text: str) -> "Teacher":
        """Return the teacher that an option names.

        Raises:
            ConfigError: If the option names none.
        """
        from dptdr.mining.teachers import CrossEncoderTeacher, FileTeacher

        kind, _, value = text.partition(":")
        if not value or kind not in ("cross-encoder", "task", "backbone", "file"):
            raise ConfigError(f"teacher '{text}': expected {TEACHERS}")
        if kind == "cross-encoder":
            return CrossEncoderTeacher(value, device=self.machine.device)
        if kind == "file":
            table = self._import(self.work / "runs" / "teacher", Path(value))
            return FileTeacher(table, name=f"file:{Path(value).name}", corpus=self.corpus)
        values = value.split(",") if kind == "task" else [value]
        return self._encoder_teacher(kind, values)

    def vectors(self, encoder: "Encoder") -> "VectorFolder":
        """Return the corpus encoded; encoders that share their passage side share the vectors."""
        from dptdr.search.vectors.encoding import encode_data

        name = f"vectors-{encoder.passage_fingerprint[:16]}-{self.corpus_fingerprint[:16]}"
        with self.show(f"encode with {encoder.name}") as on_progress:
            return encode_data(
                encoder, self.folder.path, out=self.cache / name, on_progress=on_progress
            )

    def _encoder_teacher(self, kind: str, values: list[str]) -> "Teacher":
        from dptdr.mining.teachers import EncoderTeacher

        members = []
        names = []
        for value in values:
            encoder = self._encoder(kind, value)
            identity = f"{encoder.query_fingerprint} {encoder.passage_fingerprint}"
            members.append((encoder.encode_queries, self.vectors(encoder), identity))
            names.append(encoder.name)
        return EncoderTeacher(members, name=f"{kind}:{','.join(names)}")

    def _encoder(self, kind: str, value: str) -> "Encoder":
        return load_source(kind, value, machine=self.machine, encoders=self.encoders)

    def _import(self, path: Path, run: Path) -> "RunTable":
        from dptdr.errors import DataError
        from dptdr.io.atomic import sha256_file
        from dptdr.mining.runtable import import_run

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

    def _bm25(self, path: Path, *, language: str, depth: int) -> "RunTable":
        from dptdr.mining.runtable import RunTable, RunTableWriter
        from dptdr.search.bm25 import K1, B, Bm25Index

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
        index = Bm25Index.load(stored)
        with self.show("search with BM25") as on_progress:
            for queries in self._parts(writer, on_progress=on_progress):
                hits = index.search_rows(queries, depth=depth, threads=self.machine.threads)
                writer.write_part(
                    (query.id, rows, scores)
                    for query, (rows, scores) in zip(queries, hits, strict=True)
                )
        return writer.finish()

    def _dense(self, path: Path, kind: str, value: str, *, depth: int) -> "RunTable":
        from dptdr.mining.runtable import RunTable, RunTableWriter
        from dptdr.search.indexes.exact import top_k_of_blocks

        encoder = self._encoder(kind, value)
        identity = f"{encoder.query_fingerprint} {encoder.passage_fingerprint}"
        writer = RunTableWriter(path, fingerprint=_digest(self.fingerprint, identity, str(depth)))
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
        self, writer: "RunTableWriter", *, on_progress: Callable[[int, int], None]
    ) -> "Iterator[list[Query]]":
        """Yield the judged queries in parts, from the first that is not written yet."""
        judged = (q for q in self.folder.queries() if self.judgements.of(q.id) is not None)
        left = itertools.islice(judged, writer.parts * _QUERIES_PER_PART, None)
        while queries := list(itertools.islice(left, _QUERIES_PER_PART)):
            yield queries
            total = self.judgements.queries
            on_progress(min(total, writer.parts * _QUERIES_PER_PART), total)


def source_identity(kind: str, value: str, *, machine: Machine, encoders: "Encoders") -> str:
    """Return what identifies the content of a source or teacher, wherever it is.

    Args:
        encoders: Those that are loaded; others are added.

    Returns:
        Constants of BM25, a checksum, or fingerprints.

    Raises:
        DataError: If a run file is missing.
    """
    from dptdr.errors import DataError
    from dptdr.io.atomic import sha256_file
    from dptdr.search.bm25 import K1, B

    if kind == "bm25":
        language = check_language(value or AUTO)
        return f"{K1} {B}" if language == AUTO else f"{K1} {B} {language}"
    if kind in ("run", "file"):
        if not Path(value).is_file():
            raise DataError("no such file", path=value)
        return sha256_file(Path(value))
    if kind not in ("task", "backbone"):
        return value
    made = [
        load_source(kind, one, machine=machine, encoders=encoders)
        for one in (value.split(",") if kind == "task" else [value])
    ]
    return " ".join(f"{one.query_fingerprint} {one.passage_fingerprint}" for one in made)


def load_source(kind: str, value: str, *, machine: Machine, encoders: "Encoders") -> "Encoder":
    """Return the encoder that a source or teacher names, loaded once."""
    from dptdr.model import load_encoder

    if (kind, value) not in encoders:
        device, dtype = machine.device, machine.dtype
        if kind == "task":
            encoder = load_encoder(task=Path(value), device=device, dtype=dtype)
        else:
            encoder = load_encoder(backbone=value, device=device, dtype=dtype)
        encoder.only_encode()
        encoders[kind, value] = encoder
    return encoders[kind, value]


def open_context(
    folder: "BeirFolder",
    *,
    split: str,
    work: Path,
    cache: Path,
    machine: Machine,
    show: Callable[[str], Any],
    corpus: "CorpusTable | None" = None,
) -> MiningContext:
    """Read corpus and judgements once.

    Args:
        work: Folder of the unfinished work.
        cache: Folder where corpus vectors and the BM25 index are kept.

    Raises:
        DataError: If the split is missing or a file is broken.
    """
    from dptdr.errors import DataError
    from dptdr.io.atomic import sha256_file
    from dptdr.io.trec import judgements
    from dptdr.mining.corpus import CorpusTable, JudgementTable

    if not folder.has_split(split):
        have = ", ".join(folder.splits()) or "none"
        raise DataError(
            f"no split '{split}'; this folder has {have}", path=folder.qrels_path(split)
        )
    if corpus is None:
        with show("read the corpus") as on_progress:
            corpus = CorpusTable.build(folder.passages(), on_progress=on_progress)
    triples = (judgement for _, judgement in judgements(folder.qrels_path(split)))
    return MiningContext(
        folder=folder,
        fingerprint=folder.fingerprint(),
        corpus_fingerprint=sha256_file(folder.corpus_path),
        corpus=corpus,
        judgements=JudgementTable.build(triples, corpus=corpus),
        work=work,
        cache=cache,
        machine=machine,
        show=show,
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8")).hexdigest()
