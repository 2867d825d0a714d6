"""``dptdr encode``: encode a corpus."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dptdr.cli.common import BatchSize, Device, Dtype, Json, Threads, start, write_result
from dptdr.errors import ConfigError
from dptdr.io.outputs import try_outputs

if TYPE_CHECKING:
    from dptdr.search.vectors.folder import VectorFolder

PANELS = {"Several processes and machines": ("shard_size", "shard", "processes", "ray")}


def command(
    data: Annotated[Path, typer.Argument(help="BEIR folder; its corpus.jsonl is encoded.")],
    out: Annotated[Path, typer.Option(help="Vector folder to write.")],
    task: Annotated[Path | None, typer.Option(help="Task bundle, or its name on the hub.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Encoder without a prompt (minilm, a folder or a hub name); "
            "with --task, where the "
            "task's backbone is."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Encode only the first LIMIT passages.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16"],
        typer.Option(help="Dtype of the stored vectors; float16 halves the size."),
    ] = "float32",
    shard_size: Annotated[
        int,
        typer.Option(
            help="Passages per shard: the unit of length sorting, and the most lost in a crash."
        ),
    ] = 16_384,
    shard: Annotated[
        str,
        typer.Option(
            help="Encode part i of n only, as i/n from 0, for several "
            "machines. They may share OUT, "
            "or copy their OUT.partial folders together and run the command once more."
        ),
    ] = "0/1",
    processes: Annotated[
        int,
        typer.Option(help="Processes on this machine, or --ray workers; each loads the encoder."),
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Encode on a Ray cluster: its address, auto for one on this machine, or local "
            "to start one. DATA and OUT must have the same paths on every machine."
        ),
    ] = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    weights: Dtype = "float32",
    threads: Threads = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Delete OUT and any unfinished work, and start over. If interrupted, the old OUT "
            "is restored, and the same command starts over again.",
        ),
    ] = False,
    json: Json = None,
) -> None:
    """Encode a corpus into a vector folder.

    Rerun the same command to resume a killed run.
    """
    try_outputs(json)
    if task is None and backbone is None:
        raise ConfigError(
            "expected --task TASK or --backbone BACKBONE, got neither; --backbone minilm needs no "
            "training"
        )
    part = parse_part(shard)
    start()
    import dptdr

    started = time.perf_counter()
    folder = dptdr.encode(
        data,
        task or str(backbone),
        out=out,
        shard_size=shard_size,
        dtype=dtype,
        part=part,
        processes=processes,
        ray=ray,
        limit=limit,
        batch_size=batch_size,
        device=device,
        threads=threads,
        weights=weights,
        backbone=backbone if task is not None else None,
        overwrite=overwrite,
    )
    if folder is None:
        typer.echo(
            f"part {shard} is done; {out}.partial waits for the other parts, then run any of them "
            "again"
        )
        return
    report = _report(folder, seconds=time.perf_counter() - started)
    said = (
        f"{out}: {folder.count:,} vectors of dimension {folder.dim}, {report['bytes'] / 1e6:.1f} "
        f"MB, by {folder.manifest.origin.encoder}, {report['seconds']:.1f} s"
    )
    write_result(json, report, said=said)


def parse_part(text: str) -> tuple[int, int]:
    """Parse ``i/n`` (i from 0) to part and number of parts."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise ConfigError(f"expected --shard i/n with i from 0 to n - 1, such as 0/4, got {text!r}")
    return int(part), int(parts)


def _report(folder: "VectorFolder", *, seconds: float) -> dict[str, Any]:
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
