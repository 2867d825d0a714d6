"""Encode into one vector folder with several processes."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

from dptdr.errors import DptdrError, VectorsError
from dptdr.io.processes import DIED
from dptdr.io.resume import claim
from dptdr.records import Document, Passage
from dptdr.search.retrieve import TextEncoder
from dptdr.search.vectors.documents import Source
from dptdr.search.vectors.encoding import (
    EncodeSettings,
    encode_folder,
    partial_path,
    replaced,
)
from dptdr.search.vectors.folder import VectorFolder
from dptdr.search.vectors.manifest import FORMAT, MANIFEST, SHARDS

_SECONDS_BETWEEN_LOOKS = 0.5


def encode_in_processes(
    load_encoder: Callable[[], TextEncoder],
    read: Callable[[], Iterable[Passage | Document]],
    *,
    out: Path,
    source: Source,
    settings: EncodeSettings,
    processes: int,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> VectorFolder | None:
    """Encode a corpus with several processes; the result is byte-identical to that of one.

    Each process loads its own encoder, reads the whole corpus and encodes its share of the shards
    on its share of the cores. (Some matrix libraries round differently depending on the number of
    threads, in which case the last bits of the vectors may differ.)

    Args:
        load_encoder: Creates the encoder; must be picklable, such as a ``functools.partial``.
        read: Opens the corpus; must be picklable.
        settings: As for one process; ``part`` and ``parts`` split the work between machines.
        processes: Number of processes, at least 1.
        overwrite: Delete any output at ``out`` and start over.

    Returns:
        The complete folder, or None if parts of other machines are missing.

    Raises:
        VectorsError: If a process died; completed shards are kept.
        DptdrError: If a process raised it.
    """
    if processes < 1:
        raise VectorsError(f"expected at least 1 process, got {processes}")
    if overwrite:
        with claim(out, mark=MANIFEST, format=FORMAT):
            # It is ours, and no other process uses it.
            pass
    threads = max(1, (os.cpu_count() or 1) // processes)
    with (
        replaced(out, settings=settings, overwrite=overwrite),
        ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_use_threads,
            initargs=(threads,),
        ) as pool,
    ):
        futures = [
            pool.submit(
                _encode_share,
                load_encoder,
                read,
                out=out,
                source=source,
                # Machine p of n with k processes encodes k of the n*k parts, starting at p*k.
                settings=replace(
                    settings,
                    part=settings.part * processes + share,
                    parts=settings.parts * processes,
                ),
            )
            for share in range(processes)
        ]
        try:
            _watch(futures, out=out, source=source, settings=settings, on_progress=on_progress)
            finished = [future.result() for future in futures]
        except BrokenProcessPool:
            raise VectorsError(
                f"an encoding process died ({DIED}); completed shards are kept, "
                "rerun to resume, with fewer processes if memory is low"
            ) from None
        finally:
            for future in futures:
                future.cancel()
    if on_progress is not None and source.count:
        on_progress(source.count, source.count)
    return VectorFolder(out) if any(finished) else None


def _use_threads(threads: int) -> None:
    """Limit a new process to its share of the cores, before it imports numpy and torch."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # Otherwise tokenizers would start a thread per core in every process.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Terminate this process when its parent dies, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_share(
    load_encoder: Callable[[], TextEncoder],
    read: Callable[[], Iterable[Passage | Document]],
    *,
    out: Path,
    source: Source,
    settings: EncodeSettings,
) -> bool:
    """Encode one process's share; return whether it finished the folder."""
    try:
        folder = encode_folder(
            load_encoder(),
            read(),
            out=out,
            source=source,
            settings=settings,
        )
    except DptdrError as error:
        # Exceptions with extra fields cannot be pickled between processes.
        raise type(error)(str(error)) from None
    return folder is not None


def _watch(
    futures: list[Future[bool]],
    *,
    out: Path,
    source: Source,
    settings: EncodeSettings,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Report finished shards until all processes are done or one fails."""
    shards = partial_path(out) / SHARDS
    while not all(future.done() for future in futures):
        if any(future.done() and future.exception() is not None for future in futures):
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        if on_progress is not None and shards.is_dir():
            done = len(list(shards.glob("*.json"))) * settings.shard_size
            total = source.count or 0
            on_progress(min(done, total) if total else done, total)
