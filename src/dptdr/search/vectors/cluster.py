"""Encode on a Ray cluster (optional extra ``cluster``), one shard at a time.

A shard is a byte range of the corpus file. A worker reads it, encodes it and writes its files and
then its record to the unfinished folder, so data and output must be on storage shared by all
machines under the same path. If a worker dies, a replacement repeats its shard; because shards
are written atomically, nothing is lost or duplicated.
"""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dptdr import errors
from dptdr.errors import DptdrError, VectorsError
from dptdr.io.beir import BeirFolder, parse_document
from dptdr.io.ids import IdSet
from dptdr.io.lines import UTF8_MARK, open_bytes
from dptdr.io.resume import claim
from dptdr.records import Document
from dptdr.search.retrieve import TextEncoder
from dptdr.search.vectors.documents import Source, read_documents
from dptdr.search.vectors.encoding import (
    EncodeSettings,
    begin_folder,
    fill_folder,
    partial_path,
    replaced,
)
from dptdr.search.vectors.folder import VectorFolder
from dptdr.search.vectors.manifest import FORMAT, MANIFEST, DType
from dptdr.search.vectors.reuse import KnownVectors
from dptdr.search.vectors.shards import encode_shard, record_path, refuse_doubles

_KNOCK_SECONDS = 10
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}


class Cluster(NamedTuple):
    """Address of the cluster, and the resources of each worker."""

    address: str = "local"
    """Address of a running Ray cluster; ``auto`` for this machine's; ``local`` to start one."""
    workers: int = 2
    """Total number of workers; each loads the encoder."""
    cpus: float = 1
    """CPU cores per worker."""
    gpus: float = 0
    """Accelerators per worker."""


def encode_on_ray(
    load_encoder: Callable[[], TextEncoder],
    data: Path,
    *,
    out: Path,
    source: Source,
    settings: EncodeSettings,
    cluster: Cluster,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> VectorFolder:
    """Encode the corpus of a BEIR folder on a Ray cluster.

    The result is byte-identical to that of a single process (if matrix products do not depend on
    the number of threads; see :func:`dptdr.search.vectors.workers.encode_in_processes`). An
    interrupted run can be resumed with or without Ray.

    Args:
        load_encoder: Creates the encoder; must be picklable.
        data: The BEIR folder, under the same path on every machine.
        out: The vector folder, under the same path on every machine.
        settings: Shard size and dtype; must cover all parts.
        overwrite: Delete any output at ``out`` and start over.

    Raises:
        VectorsError: If Ray is not installed or unreachable, an id is duplicated, or the workers'
            output is not visible here.
        DptdrError: If a worker raised it.
    """
    ray = _ray()
    if cluster.workers < 1:
        raise VectorsError(f"expected at least 1 worker, got {cluster.workers}")
    with (
        claim(out, mark=MANIFEST, format=FORMAT),
        replaced(out, settings=settings, overwrite=overwrite),
    ):
        encoder = load_encoder()
        work = begin_folder(encoder, out=out, source=source, settings=settings)
        if work is None:
            return VectorFolder(out)
        shards = list(shard_ranges(data, settings.shard_size))
        missing = [shard for shard in shards if not record_path(work, shard.number).is_file()]
        if missing:
            _connect(ray, cluster)
            done = len(shards) - len(missing)
            for row in _encoded(ray, missing, load_encoder, data, work, settings.dtype, cluster):
                if row["error"]:
                    raise getattr(errors, row["kind"])(row["error"])
                done += 1
                if on_progress is not None:
                    on_progress(
                        min(done * settings.shard_size, source.count or 0), source.count or 0
                    )
        unseen = [shard for shard in shards if not record_path(work, shard.number).is_file()]
        if unseen:
            raise VectorsError(
                f"{work}: {len(unseen)} shards written by workers are not visible here; put "
                "--out on storage shared by all machines under the same path"
            )
        # Checks every record against the passages and moves the folder into place.
        folder = fill_folder(
            encoder, read_documents(data), out=out, source=source, settings=settings
        )
        if folder is None:
            raise VectorsError(
                f"{partial_path(out)}: changed by another process; rerun the command"
            )
        return folder


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise VectorsError(
            f"encoding on a cluster needs Ray ({error}); run `pip install 'dptdr[cluster]'`, or "
            "use --processes on this machine"
        ) from None
    return ray


def _connect(ray: Any, cluster: Cluster) -> None:
    """Join or start a cluster, unless the caller already has."""
    if ray.is_initialized():
        return
    try:
        _knock(cluster.address)
        if cluster.address == "local":
            cores = max(1, round(cluster.workers * cluster.cpus))
            ray.init(num_cpus=cores, include_dashboard=False, **_QUIET)
        else:
            ray.init(address=cluster.address, **_QUIET)
    except (OSError, ValueError, RuntimeError) as error:
        raise VectorsError(
            f"no Ray cluster at '{cluster.address}' ({' '.join(str(error).split())[:200]}); start "
            "one with `ray start --head`, or use --ray local"
        ) from None


class ShardRange(NamedTuple):
    """Position of a shard in the corpus file."""

    number: int
    """Index of the shard, from 0."""
    start: int
    """Byte offset of the start."""
    end: int
    """Byte offset of the end, exclusive."""
    line: int
    """First line number, from 1."""


def _knock(address: str) -> None:
    """Fail fast if nothing listens at an address; Ray would wait for minutes.

    Raises:
        OSError: If the connection fails.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()


def shard_ranges(data: Path, shard_size: int) -> Iterator[ShardRange]:
    """Yield the shards of a corpus in file order, rejecting duplicate ids.

    Raises:
        DataError: If a line is malformed.
        VectorsError: If an id is duplicated or there are no passages.
    """
    path = BeirFolder(data).corpus_path
    seen = IdSet()
    held: list[str] = []
    number = end = 0
    start, first = 0, 1
    with open_bytes(path) as handle:
        for at, line in enumerate(handle, start=1):
            end += len(line)
            held += [document.passage.id for document in _parsed(line, path=path, first=at)]
            if len(held) == shard_size:
                refuse_doubles(held, seen=seen)
                yield ShardRange(number, start, end, first)
                held, number, start, first = [], number + 1, end, at + 1
    if held:
        refuse_doubles(held, seen=seen)
        yield ShardRange(number, start, end, first)
    elif number == 0:
        raise VectorsError(f"{path}: expected at least one passage, got an empty corpus")


def _parsed(text: bytes, *, path: Path, first: int) -> list[Document]:
    """Parse consecutive lines of the corpus."""
    found = []
    for number, line in enumerate(text.split(b"\n"), start=first):
        kept = line.removesuffix(b"\r")
        if number == 1:
            kept = kept.removeprefix(UTF8_MARK)
        if kept.strip():
            found.append(parse_document(kept, path=path, number=number))
    return found


class ShardWorker:
    """A cluster worker, which loads the encoder once and encodes shards."""

    def __init__(
        self, load_encoder: Callable[[], TextEncoder], data: Path, work: Path, dtype: DType
    ) -> None:
        self.encoder = load_encoder()
        self.path = BeirFolder(data).corpus_path
        self.work = work
        self.dtype = dtype
        self.known = KnownVectors(None, encoder=self.encoder, dtype=dtype)

    def __call__(self, shard: dict[str, int]) -> dict[str, Any]:
        """Encode and write one shard."""
        here = ShardRange(**{name: int(shard[name]) for name in ShardRange._fields})
        try:
            with open_bytes(self.path) as handle:
                handle.seek(here.start)
                text = handle.read(here.end - here.start)
            encode_shard(
                self.encoder,
                _parsed(text, path=self.path, first=here.line),
                index=here.number,
                work=self.work,
                dtype=self.dtype,
                known=self.known,
            )
        except DptdrError as error:
            return {"number": here.number, "kind": type(error).__name__, "error": str(error)}
        return {"number": here.number, "kind": "", "error": ""}


def _encoded(
    ray: Any,
    shards: list[ShardRange],
    load_encoder: Callable[[], TextEncoder],
    data: Path,
    work: Path,
    dtype: DType,
    cluster: Cluster,
) -> Iterator[Any]:
    """Yield once per shard written by a worker."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [shard._asdict() for shard in shards]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        ShardWorker,
        fn_constructor_args=(load_encoder, data, work, dtype),
        compute=ray.data.ActorPoolStrategy(size=cluster.workers),
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus,
    )
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise VectorsError(
            f"a worker failed ({lines[-1][:300] if lines else type(error).__name__}); completed "
            "shards are kept, rerun the command to resume"
        ) from None
