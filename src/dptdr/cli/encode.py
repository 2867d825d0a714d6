"""``dptdr encode``: a corpus becomes a folder of vectors."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dptdr.cli.common import Device, Json, write_result
from dptdr.errors import ConfigError
from dptdr.io.resume import try_outputs

if TYPE_CHECKING:
    from dptdr.search.vectors.folder import VectorFolder


def command(
    data: Annotated[Path, typer.Argument(help="BEIR folder; its corpus.jsonl is encoded.")],
    out: Annotated[Path, typer.Option(help="Vector folder to write.")],
    task: Annotated[Path | None, typer.Option(help="Task bundle that encodes.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Bare backbone that encodes (name, folder or minilm); with --task, where the "
            "task's backbone lies."
        ),
    ] = None,
    shard_size: Annotated[
        int,
        typer.Option(
            help="Passages in a shard: sorted by length inside, and what a kill loses at most."
        ),
    ] = 16_384,
    dtype: Annotated[
        str, typer.Option(help="Stored precision: float32, or float16 for half the bytes.")
    ] = "float32",
    shard: Annotated[
        str,
        typer.Option(
            help="Do part i of n (from 0), for several machines: i/n. They may share the folder, "
            "or their OUT.partial folders are copied together and the command is run once more."
        ),
    ] = "0/1",
    processes: Annotated[
        int,
        typer.Option(help="Processes on this machine, or --ray workers; each loads the encoder."),
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Encode on a Ray cluster: its address, auto for the one of this machine, or local "
            "to start one. DATA and OUT lie under the same path on every machine."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Encode only the first so many passages.")
    ] = None,
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option(help="Precision of the backbone's weights: float32 or bfloat16.")
    ] = "float32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over, whatever OUT and OUT.partial hold.")
    ] = False,
    json: Json = None,
) -> None:
    """Encode a corpus into a vector folder.

    A killed run goes on where it was when the same command is given again.
    """
    try_outputs(json)
    from dptdr.errors import ConfigError

    if task is None and backbone is None:
        raise ConfigError(
            "expected --task TASK or --backbone BACKBONE, got neither; --backbone minilm needs no "
            "training"
        )
    part = parse_part(shard)
    stored = parse_dtype(dtype)
    from dptdr import api

    started = time.perf_counter()
    folder = api.encode(
        data,
        task or str(backbone),
        out=out,
        shard_size=shard_size,
        dtype=stored,
        part=part,
        processes=processes,
        ray=ray,
        limit=limit,
        device=device,
        weights=precision,
        backbone=backbone if task is not None else None,
        overwrite=overwrite,
    )
    if folder is None:
        typer.echo(
            f"part {shard} is done; {out}.partial waits for the other parts, then run any of them "
            "again"
        )
        return
    report = encode_report(folder, seconds=time.perf_counter() - started)
    said = (
        f"{out}: {folder.count:,} vectors of dimension {folder.dim}, {report['bytes'] / 1e6:.1f} "
        f"MB, by {folder.manifest.origin.encoder}, {report['seconds']:.1f} s"
    )
    write_result(json, report, said=said)


def parse_part(text: str) -> tuple[int, int]:
    """Return part and parts of ``i/n``.

    Args:
        text: What the user wrote.

    Returns:
        Part from 0, and number of parts.

    Raises:
        ConfigError: If it is no such pair.
    """
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise ConfigError(f"expected --shard i/n with i from 0 to n - 1, such as 0/4, got {text!r}")
    return int(part), int(parts)


def parse_dtype(text: str) -> Any:
    """Return the stored precision, or refuse another word.

    Args:
        text: What the user wrote.

    Returns:
        The same text.

    Raises:
        ConfigError: If it is neither float32 nor float16.
    """
    from dptdr.search.vectors.manifest import DTYPES

    if text not in DTYPES:
        raise ConfigError(f"expected --dtype {' or '.join(DTYPES)}, got {text!r}")
    return text


def encode_report(folder: "VectorFolder", *, seconds: float) -> dict[str, Any]:
    """Return what ``--json`` writes of an encoded folder.

    Args:
        folder: The vector folder.
        seconds: Wall-clock time it took.

    Returns:
        Counts, bytes, speed and fingerprints.
    """
    origin = folder.manifest.origin
    return {
        "vectors": str(folder.path),
        "passages": folder.count,
        "dim": folder.dim,
        "dtype": origin.dtype,
        "bytes": sum(file.bytes for shard in folder.manifest.shards for file in shard.files),
        "vector_bytes": sum(shard.vectors.bytes for shard in folder.manifest.shards),
        "seconds": seconds,
        "passages_per_second": folder.count / seconds,
        "encoder": origin.encoder,
        "backbone_fingerprint": origin.backbone_fingerprint,
        "passage_fingerprint": origin.passage_fingerprint,
        "data_fingerprint": origin.data_fingerprint,
    }
