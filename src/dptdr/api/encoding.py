"""Encode a corpus into a vector folder."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dptdr.api.inputs import (
    AnyData,
    AnyPath,
    data_folder,
    phases,
    resolve_device,
    set_threads,
)
from dptdr.api.task import AnyEncoder, loaded
from dptdr.config.arguments import check_counts, checked
from dptdr.errors import ConfigError
from dptdr.io.outputs import try_outputs
from dptdr.model import Encoder
from dptdr.records import Document
from dptdr.search.vectors.cluster import Cluster, encode_on_ray
from dptdr.search.vectors.documents import read_documents, source_of
from dptdr.search.vectors.encoding import EncodeSettings, encode_folder
from dptdr.search.vectors.folder import VectorFolder
from dptdr.search.vectors.manifest import DTYPES
from dptdr.search.vectors.workers import encode_in_processes


@checked
def encode(
    data: AnyData,
    encoder: AnyEncoder,
    *,
    out: AnyPath,
    shard_size: int = 16_384,
    dtype: Literal["float32", "float16"] = "float32",
    part: tuple[int, int] = (0, 1),
    processes: int = 1,
    ray: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    weights: str = "float32",
    backbone: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> VectorFolder | None:
    """Encode a corpus into a vector folder, resuming an interrupted call.

    Args:
        data: A BEIR folder, or rows as for ``dptdr.train``.
        encoder: Passage encoder.
        out: The vector folder.
        shard_size: Passages per shard, the maximum lost in a crash.
        dtype: Dtype of the stored vectors; ``float16`` halves the size.
        part: Encode part i (from 0) of n, for several machines.
        processes: Processes on this machine, or workers with ``ray``; each loads the encoder.
        ray: Address of a Ray cluster to encode on, or ``auto`` or ``local``.
        limit: Encode only the first ``limit`` passages.
        batch_size: Maximum texts per batch; by default chosen from their lengths.
        device: Torch device; ``auto`` picks cuda, mps or cpu.
        threads: CPU threads; torch's default if ``None``.
        weights: Dtype of the backbone's weights.
        backbone: Location of the task's backbone, if it has moved.
        overwrite: Delete any output at ``out`` and start over.
        progress: Show progress on standard error.

    Returns:
        The vectors; ``None`` if other parts are missing.
    """
    if ray is not None and (part[1] > 1 or limit is not None):
        raise ConfigError(
            "ray encodes the whole corpus, but part or limit is set; omit one of them"
        )
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: expected {' or '.join(DTYPES)}, got '{dtype}'")
    if isinstance(encoder, Encoder) and (processes > 1 or ray is not None):
        raise ConfigError(
            "expected the folder or name of an encoder, to load in each process, got a loaded one"
        )
    check_counts(limit=limit, shard_size=shard_size, batch_size=batch_size, processes=processes)
    out = Path(out)
    try_outputs(out, folders=True, inputs=[data, encoder], suffix=".partial")
    set_threads(threads)
    load_one = functools.partial(
        loaded,
        encoder,
        backbone=backbone,
        device=device,
        dtype=weights,
        batch_size=batch_size,
        fast=True,
    )
    settings = EncodeSettings(shard_size=shard_size, dtype=dtype, part=part[0], parts=part[1])
    with data_folder(data) as folder, phases(progress)("encode") as on_progress:
        source, read = source_of(folder), functools.partial(read_documents, folder)
        if limit is not None:
            read = functools.partial(_first_documents, folder, limit=limit)
            source = replace(
                source,
                fingerprint=f"{source.fingerprint} first {limit}",
                count=min(limit, source.count or limit),
            )
        if ray is not None:
            # Each worker has an accelerator to itself.
            gpus = 0 if resolve_device(device) == "cpu" else 1
            cluster = Cluster(ray, workers=processes, gpus=gpus)
            return encode_on_ray(
                load_one,
                folder,
                out=out,
                source=source,
                settings=settings,
                cluster=cluster,
                overwrite=overwrite,
                on_progress=on_progress,
            )
        if processes == 1:
            return encode_folder(
                load_one(),
                read(),
                out=out,
                source=source,
                settings=settings,
                overwrite=overwrite,
                on_progress=on_progress,
            )
        return encode_in_processes(
            load_one,
            read,
            out=out,
            source=source,
            settings=settings,
            processes=processes,
            overwrite=overwrite,
            on_progress=on_progress,
        )


def _first_documents(folder: Path, *, limit: int) -> Iterator[Document]:
    return itertools.islice(read_documents(folder), limit)
