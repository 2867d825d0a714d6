"""Encode a corpus into a vector folder: streaming, resumable and parallel.

The corpus is split into shards of ``shard_size`` consecutive passages. Work happens in
``OUT.partial``, which contains ``plan.json`` (the origin of the vectors) and the files of each
finished shard. A shard's record is written last, so a shard with a record is always complete,
and several processes or machines can fill the same folder. Once every shard has a record, the
manifest is written and the folder is renamed to ``OUT``.
"""

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptdr.errors import OutputError, VectorsError
from dptdr.io.atomic import write_json, writing
from dptdr.io.beir import as_documents
from dptdr.io.ids import IdSet
from dptdr.io.locks import locked
from dptdr.io.outputs import refuse_extra
from dptdr.io.probe import same_probe
from dptdr.io.resume import check_same, claim, say_complete
from dptdr.records import Document, Passage
from dptdr.search.retrieve import TextEncoder, probe_of, weights_of
from dptdr.search.vectors.documents import Source, read_documents, source_of
from dptdr.search.vectors.folder import VectorFolder
from dptdr.search.vectors.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    SHARDS,
    DType,
    Origin,
    Shard,
    VectorManifest,
    origin_from_json,
    read_record,
    shard_from_json,
)
from dptdr.search.vectors.reuse import KnownVectors
from dptdr.search.vectors.shards import (
    PLAN,
    check_record,
    encode_shard,
    record_path,
    refuse_doubles,
)

SHARD_SIZE = 16_384


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """Settings for encoding a corpus."""

    shard_size: int = SHARD_SIZE
    """Passages per shard: the unit of length sorting, and the maximum lost in a crash."""
    dtype: DType = "float32"
    part: int = 0
    """Index of the part to encode, from 0."""
    parts: int = 1
    """Number of parts; part p encodes shards p, p + parts, and so on."""

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise VectorsError(
                f"expected a shard size of at least 1 passage, got {self.shard_size}"
            )
        if not 0 <= self.part < self.parts:
            raise VectorsError(
                f"expected a part from 0 to {self.parts - 1} of {self.parts}, got {self.part}"
            )


def partial_path(out: Path) -> Path:
    """Return the path of an unfinished vector folder."""
    return out.with_name(out.name + ".partial")


def encode_folder(
    encoder: TextEncoder,
    passages: Iterable[Passage | Document],
    *,
    out: Path,
    source: Source,
    settings: EncodeSettings | None = None,
    reuse: VectorFolder | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> VectorFolder | None:
    """Encode passages into a vector folder, resuming an interrupted call.

    Uses memory for one shard of texts and vectors, plus 8 bytes per passage.

    Args:
        passages: The corpus, read once.
        out: The vector folder; a complete one with the same encoder, data and settings is
            returned unchanged.
        settings: Shard size, dtype, and the part to encode.
        reuse: A vector folder by the same encoder whose vectors are reused for unchanged
            passages; may be the folder at ``out``.
        overwrite: Delete any output at ``out`` and start over.

    Returns:
        The complete folder, or None if other parts are missing.

    Raises:
        OutputError: If existing output has a different encoder, data or settings; if another
            process is writing it, or it cannot be written.
        VectorsError: If an id is duplicated, a vector contains NaN, or there are no passages.
    """
    settings = settings or EncodeSettings()
    out = Path(out)
    part = (settings.part, settings.parts)
    with (
        claim(out, mark=MANIFEST, format=FORMAT, part=part if settings.parts > 1 else None),
        replaced(out, settings=settings, overwrite=overwrite),
    ):
        return fill_folder(
            encoder,
            passages,
            out=out,
            source=source,
            settings=settings,
            reuse=reuse,
            on_progress=on_progress,
        )


@contextlib.contextmanager
def replaced(out: Path, *, settings: EncodeSettings, overwrite: bool) -> Iterator[None]:
    """Move a vector folder aside, so that encoding starts over; it comes back if that fails.

    Raises:
        VectorsError: If other parts may be using it.
        OutputError: If it has files of somebody else.
    """
    if not overwrite:
        yield
        return
    if settings.parts > 1:
        raise VectorsError(
            f"{out}: overwrite applies only to all parts at once, got one of {settings.parts}; "
            f"delete {out} and {partial_path(out)} instead"
        )
    work, aside = partial_path(out), _aside(out)
    refuse_unrelated(work)
    _refuse_added(out)
    with writing(out):
        shutil.rmtree(work, ignore_errors=not work.exists())
        if out.exists():
            shutil.rmtree(aside, ignore_errors=True)
            out.rename(aside)
    try:
        yield
    finally:
        if out.exists():
            shutil.rmtree(aside, ignore_errors=True)
        elif aside.exists():
            aside.rename(out)


def _aside(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def fill_folder(
    encoder: TextEncoder,
    passages: Iterable[Passage | Document],
    *,
    out: Path,
    source: Source,
    settings: EncodeSettings,
    reuse: VectorFolder | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> VectorFolder | None:
    """Do the work of :func:`encode_folder` in a folder locked by the caller."""
    renewed = reuse is not None and reuse.path == out
    work = begin_folder(encoder, out=out, source=source, settings=settings, renewed=renewed)
    if work is None:
        return VectorFolder(out)
    origin = _origin(encoder, source=source, settings=settings)
    known = KnownVectors(reuse, encoder=encoder, dtype=settings.dtype)
    with writing(work):
        worker = _Worker(encoder, work=work, settings=settings, known=known)
        complete = worker.go_through(passages, total=source.count or 0, on_progress=on_progress)
        if complete:
            return _finish(work, out=out, origin=origin)
    # Another part may have written the last record and published the folder in the meantime.
    return VectorFolder(out) if not work.exists() and (out / MANIFEST).is_file() else None


def begin_folder(
    encoder: TextEncoder,
    *,
    out: Path,
    source: Source,
    settings: EncodeSettings,
    renewed: bool = False,
) -> Path | None:
    """Create or find the unfinished folder.

    Args:
        renewed: Replace a complete folder at ``out``.

    Returns:
        The unfinished folder, or None if ``out`` is already complete and matches.

    Raises:
        OutputError: If existing output has a different encoder, data or settings, or cannot be
            written.
    """
    origin = _origin(encoder, source=source, settings=settings)
    if (out / MANIFEST).is_file() and not renewed:
        _check_origin(VectorFolder(out).manifest.origin, origin, path=out)
        if settings.part == 0:
            say_complete(out)
        return None
    work = partial_path(out)
    refuse_unrelated(work)
    _refuse_added(out)
    with writing(work):
        _open_plan(work, origin)
    return work


def encode_data(
    encoder: TextEncoder,
    data: Path | str,
    *,
    out: Path,
    settings: EncodeSettings | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> VectorFolder:
    """Encode the corpus of a BEIR folder in one process.

    Args:
        settings: Shard size and dtype; must cover all parts.
    """
    folder = encode_folder(
        encoder,
        read_documents(data),
        out=out,
        source=source_of(data),
        settings=settings,
        on_progress=on_progress,
    )
    if folder is None:
        raise VectorsError(f"{out}: other parts are missing; encode them, then rerun the command")
    return folder


class _Worker:
    """Encodes the missing shards of one part."""

    def __init__(
        self, encoder: TextEncoder, *, work: Path, settings: EncodeSettings, known: KnownVectors
    ) -> None:
        self.encoder = encoder
        self.work = work
        self.settings = settings
        self.known = known
        self.ids = IdSet()

    def go_through(
        self,
        passages: Iterable[Passage | Document],
        *,
        total: int,
        on_progress: Callable[[int, int], None] | None,
    ) -> bool:
        """Encode this part's missing shards; return whether all shards of the corpus are done."""
        done = count = 0
        shards = _in_shards(as_documents(passages), self.settings.shard_size)
        for index, documents in enumerate(shards):
            refuse_doubles((document.passage.id for document in documents), seen=self.ids)
            record = record_path(self.work, index)
            if record.is_file():
                check_record(
                    record,
                    documents,
                    work=self.work,
                    encoder=self.encoder,
                    dtype=self.settings.dtype,
                )
            elif index % self.settings.parts == self.settings.part:
                encode_shard(
                    self.encoder,
                    documents,
                    index=index,
                    work=self.work,
                    dtype=self.settings.dtype,
                    known=self.known,
                    on_progress=_corpus_progress(on_progress, done=done, total=total),
                )
            done += len(documents)
            count = index + 1
            if on_progress is not None:
                on_progress(done, total)
        if done == 0:
            raise VectorsError("expected at least one passage, got an empty corpus")
        # Checked at the end, so that whichever part finishes last sees all records.
        return all(record_path(self.work, index).is_file() for index in range(count))


def _in_shards(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    while shard := list(itertools.islice(documents, size)):
        yield shard


def _corpus_progress(
    on_progress: Callable[[int, int], None] | None, *, done: int, total: int
) -> Callable[[int, int], None]:
    """Return a shard's progress callback that reports counts for the whole corpus."""

    def report(inside: int, _: int) -> None:
        if on_progress is not None:
            on_progress(done + inside, total)

    return report


def _origin(encoder: TextEncoder, *, source: Source, settings: EncodeSettings) -> Origin:
    return Origin(
        dim=encoder.dim,
        dtype=settings.dtype,
        encoder=encoder.name,
        backbone_fingerprint=encoder.backbone_fingerprint,
        passage_fingerprint=encoder.passage_fingerprint,
        data_fingerprint=source.fingerprint,
        data=source.data,
        shard_size=settings.shard_size,
        weights=weights_of(encoder),
        probe=probe_of(encoder),
    )


def _refuse_added(out: Path) -> None:
    refuse_extra(out, known=(MANIFEST, PLAN, f"{SHARDS}/[0-9]*"))


def refuse_unrelated(work: Path) -> None:
    """Reject a folder for unfinished vectors that no earlier run can have made.

    Raises:
        OutputError: If it has other files.
    """
    if not work.is_dir() or (work / PLAN).exists():
        return
    # A run that was killed at its start may have left a folder without a plan.
    if any(entry.name != SHARDS and entry.name[0] != "." for entry in work.iterdir()):
        raise OutputError(
            "contains unrelated files, but is where unfinished vectors go; choose a different "
            "output, or move the folder",
            path=work,
        )


def _open_plan(work: Path, origin: Origin) -> None:
    """Create the unfinished folder, or check that it was started with the same settings."""
    path = work / PLAN
    if not path.is_file():
        (work / SHARDS).mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, "format_version": FORMAT_VERSION, **origin.as_json()})
    begun = origin_from_json(read_record(path), path=path)
    _check_origin(begun, origin, path=work)


def _check_origin(begun: Origin, now: Origin, *, path: Path) -> None:
    check_same(_settings(begun), _settings(now), path=path)
    if not same_probe(begun.probe, now.probe):
        raise OutputError(
            f"cannot resume: '{now.encoder}' has the weights that made these vectors, but encodes "
            "differently; check whether config.json was changed, then choose a different output or "
            "use --overwrite",
            path=path,
        )


def _settings(origin: Origin) -> dict[str, Any]:
    """Return the settings that must match to resume or reuse a folder."""
    names = ("passage_fingerprint", "data_fingerprint", "dtype", "shard_size", "dim", "weights")
    return {name: getattr(origin, name) for name in names}


def _finish(work: Path, *, out: Path, origin: Origin) -> VectorFolder:
    """Write the manifest and move the folder into place; only one process succeeds."""
    with locked(out, f".{out.name}.finish.lock", wait=True):
        if work.is_dir():
            records = sorted((work / SHARDS).glob("*.json"))
            shards = sorted(
                (shard_from_json(read_record(path), path=path) for path in records),
                key=lambda shard: shard.index,
            )
            manifest = VectorManifest(
                origin=origin, count=sum(shard.rows for shard in shards), shards=tuple(shards)
            )
            _remove_leftovers(work / SHARDS, shards)
            write_json(work / MANIFEST, manifest.as_json())
            aside = out.with_name(f".{out.name}.old")
            if out.exists():
                shutil.rmtree(aside, ignore_errors=True)
                out.rename(aside)
            work.rename(out)
            shutil.rmtree(aside, ignore_errors=True)
            # Of an overwriting run that was killed.
            shutil.rmtree(_aside(out), ignore_errors=True)
    return VectorFolder(out)


def _remove_leftovers(folder: Path, shards: Sequence[Shard]) -> None:
    """Delete temporary files left by a killed process."""
    listed = {file.name for shard in shards for file in shard.files}
    listed |= {f"{shard.index:05d}.json" for shard in shards}
    for path in folder.iterdir():
        if path.name not in listed:
            path.unlink()
