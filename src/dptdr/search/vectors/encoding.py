"""Encoding a corpus into a vector folder: streamed, resumable, shared by several processes.

The corpus is cut into windows of ``shard_size`` consecutive passages. While work goes on, the
folder ``OUT.partial`` holds ``plan.json`` (what makes the vectors) and, for each finished window,
its files and last of all its record. So a window with a record is whole whatever was killed when,
and several processes or machines may fill one folder. When every window has its record, the
manifest is written and the folder takes the place of ``OUT``.
"""

import contextlib
import fcntl
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dptdr.errors import VectorsError, WrongPrompt
from dptdr.io.atomic import recover_folder, write_json
from dptdr.records import Passage
from dptdr.search.retrieve import TextEncoder
from dptdr.search.vectors.documents import (
    Document,
    Source,
    as_documents,
    read_documents,
    source_of,
)
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
from dptdr.search.vectors.windows import PassageIds, check_record, encode_window, record_path

SHARD_SIZE = 16_384
PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """How a corpus is encoded."""

    shard_size: int = SHARD_SIZE
    """Passages in a shard: sorted by length within, and what a crash loses at most."""
    dtype: DType = "float32"
    part: int = 0
    """Which part of the work is done here, from 0."""
    parts: int = 1
    """Into how many parts the work is split; part p does the windows p, p + parts, ..."""

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
    """Return where an unfinished vector folder stands."""
    return out.with_name(out.name + ".partial")


def encode_folder(
    encoder: TextEncoder,
    passages: Iterable[Passage | Document],
    *,
    out: Path,
    source: Source,
    settings: EncodeSettings | None = None,
    reuse: VectorFolder | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> VectorFolder | None:
    """Encode passages into a vector folder, going on where an earlier call was killed.

    Memory holds one window of texts and vectors, plus 8 bytes for each passage.

    Args:
        encoder: Turns texts into vectors.
        passages: The corpus, read once.
        out: The vector folder; a finished one made from the same data by the same encoder is
            returned as it is.
        source: Identifies the corpus.
        settings: Shard size, dtype, and which part of the work to do.
        reuse: A vector folder whose vectors are taken over for passages of the same content,
            where the same encoder made them; the folder at ``out`` may be given.
        on_progress: Called with (passages done, passages); the total is 0 where unknown.

    Returns:
        The finished folder, or None while other parts are not done.

    Raises:
        WrongPrompt: If an unfinished or finished folder was made by another encoder.
        VectorsError: If it was made from other data or with other settings, an id stands twice, a
            vector holds NaN, there is no passage, or the disk is full.
    """
    settings = settings or EncodeSettings()
    out = Path(out)
    renewed = reuse is not None and reuse.path == out
    work = begin_folder(encoder, out=out, source=source, settings=settings, renewed=renewed)
    if work is None:
        return VectorFolder(out)
    origin = _origin(encoder, source=source, settings=settings)
    known = KnownVectors(reuse, encoder=encoder, dtype=settings.dtype)
    try:
        worker = _Worker(encoder, work=work, settings=settings, known=known)
        complete = worker.go_through(passages, total=source.count or 0, on_progress=on_progress)
        if complete:
            return _finish(work, out=out, origin=origin)
    except OSError as error:
        raise _full(work, error) from error
    # Another part may have written the last record and put the folder in its place meanwhile.
    return VectorFolder(out) if not work.exists() and (out / MANIFEST).is_file() else None


def begin_folder(
    encoder: TextEncoder,
    *,
    out: Path,
    source: Source,
    settings: EncodeSettings,
    renewed: bool = False,
) -> Path | None:
    """Begin an unfinished folder, or find the one that an earlier call began.

    Args:
        encoder: Who encodes.
        out: The vector folder that is wanted.
        source: Identifies the corpus.
        settings: Shard size and dtype.
        renewed: Whether a finished folder at ``out`` is to be replaced.

    Returns:
        The unfinished folder, or None where ``out`` is finished and holds what is wanted.

    Raises:
        WrongPrompt: If either was made by another encoder.
        VectorsError: If it was made from other data or with other settings, or the disk is full.
    """
    recover_folder(out)
    origin = _origin(encoder, source=source, settings=settings)
    if (out / MANIFEST).is_file() and not renewed:
        finished = VectorFolder(out)
        check_same_origin(finished.manifest.origin, origin, where=out, finished=True)
        return None
    work = partial_path(out)
    try:
        _open_plan(work, origin)
    except OSError as error:
        raise _full(work, error) from error
    return work


def _full(work: Path, error: OSError) -> VectorsError:
    return VectorsError(
        f"{work}: cannot be written ({error.strerror or error}); what was finished is kept, make "
        "room and run again to go on"
    )


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
        encoder: Turns texts into vectors.
        data: The BEIR folder.
        out: The vector folder.
        settings: Shard size and dtype; all parts are done here.
        on_progress: Called with (passages done, passages).

    Returns:
        The finished folder.
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
        raise VectorsError(f"{out}: other parts are not encoded yet; encode them, then run again")
    return folder


class _Worker:
    """Goes through all windows of a corpus and does those of one part that are not done."""

    def __init__(
        self, encoder: TextEncoder, *, work: Path, settings: EncodeSettings, known: KnownVectors
    ) -> None:
        self.encoder = encoder
        self.work = work
        self.settings = settings
        self.known = known
        self.ids = PassageIds()

    def go_through(
        self,
        passages: Iterable[Passage | Document],
        *,
        total: int,
        on_progress: Callable[[int, int], None] | None,
    ) -> bool:
        """Return whether every window of the corpus is done, by whichever part."""
        done = count = 0
        windows = _windows(as_documents(passages), self.settings.shard_size)
        for index, window in enumerate(windows):
            self.ids.add([document.passage.id for document in window])
            record = record_path(self.work, index)
            if record.is_file():
                check_record(record, window, work=self.work)
            elif index % self.settings.parts == self.settings.part:
                encode_window(
                    self.encoder,
                    window,
                    index=index,
                    work=self.work,
                    dtype=self.settings.dtype,
                    known=self.known,
                    on_progress=_shifted(on_progress, done=done, total=total),
                )
            done += len(window)
            count = index + 1
            if on_progress is not None:
                on_progress(done, total)
        if done == 0:
            raise VectorsError("expected at least one passage, the corpus has none")
        # Asked at the end: whoever writes the last record finds all of them.
        return all(record_path(self.work, index).is_file() for index in range(count))


def _windows(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    while window := list(itertools.islice(documents, size)):
        yield window


def _shifted(
    on_progress: Callable[[int, int], None] | None, *, done: int, total: int
) -> Callable[[int, int], None]:
    """Return a progress function for one window that counts from the whole corpus."""

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
    )


def _open_plan(work: Path, origin: Origin) -> None:
    """Begin an unfinished folder, or make sure that it is this work that was begun there."""
    path = work / PLAN
    if not path.is_file():
        (work / SHARDS).mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(origin)})
    begun = origin_from_json(read_record(path), path=path)
    check_same_origin(begun, origin, where=work, finished=False)


def check_same_origin(begun: Origin, now: Origin, *, where: Path, finished: bool) -> None:
    """Refuse to go on with vectors of another encoder, other data or other settings.

    Args:
        begun: What made the vectors that are there.
        now: What would make the next ones.
        where: The folder.
        finished: Whether the folder is complete.

    Raises:
        WrongPrompt: If backbone or prompt differ.
        VectorsError: If data, dtype or shard size differ.
    """
    advice = (
        "choose another folder, or renew it with `dptdr index VECTORS --refresh`"
        if finished
        else f"go on with what it was begun with, or remove {where} to begin anew"
    )
    if begun.passage_fingerprint != now.passage_fingerprint:
        raise WrongPrompt(
            f"{where}: was made by '{begun.encoder}' with passage fingerprint "
            f"{begun.passage_fingerprint}, not by '{now.encoder}' with {now.passage_fingerprint}; "
            + advice
        )
    for field in ("data_fingerprint", "dtype", "shard_size", "dim"):
        before, after = getattr(begun, field), getattr(now, field)
        if before != after:
            what = field.replace("_", " ")
            raise VectorsError(f"{where}: was made with {what} {before}, not {after}; {advice}")


def _finish(work: Path, *, out: Path, origin: Origin) -> VectorFolder:
    """Write the manifest and put the folder in its place; of several processes, one does it."""
    with _locked(out.with_name(f".{out.name}.lock")):
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
    return VectorFolder(out)


def _remove_leftovers(folder: Path, shards: Sequence[Shard]) -> None:
    """Remove temporary files that a killed process left."""
    listed = {file.name for shard in shards for file in shard.files}
    listed |= {f"{shard.index:05d}.json" for shard in shards}
    for path in folder.iterdir():
        if path.name not in listed:
            path.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file against other processes of this machine."""
    with path.open("wb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
