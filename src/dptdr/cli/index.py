"""``dptdr index``: build or refresh an index."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dptdr.cli.common import (
    Device,
    Json,
    Overwrite,
    Threads,
    load_encoder,
    reject_unused_options,
    start,
    write_result,
)
from dptdr.errors import ConfigError
from dptdr.io.outputs import try_outputs
from dptdr.search.indexes.types import INDEX_TYPES

if TYPE_CHECKING:
    from dptdr.search.retriever import SearchIndex

PANELS = {
    "Index type options": ("m", "ef_construction", "ef_search", "nlist", "nprobe", "seed"),
    "Refreshing an index": ("refresh", "data", "task", "backbone"),
    "Databases": ("database", "name"),
}


def command(
    context: typer.Context,
    vectors: Annotated[Path, typer.Argument(help="Vector folder from `dptdr encode`.")],
    out: Annotated[
        Path | None, typer.Option(help="Index folder to write; an old one is replaced at the end.")
    ] = None,
    index_type: Annotated[
        str | None,
        typer.Option(
            help=f"auto (by count and free memory; says why), {', '.join(INDEX_TYPES)}. "
            "Default: auto, or with --refresh the old index's type."
        ),
    ] = None,
    bm25: Annotated[
        bool, typer.Option("--bm25", help="Also build BM25, for `dptdr search --hybrid`.")
    ] = False,
    language: Annotated[
        str | None,
        typer.Option(help="Language of --bm25, such as german; detected by default."),
    ] = None,
    dimensions: Annotated[
        int | None,
        typer.Option(
            help="Search only this many dimensions, and re-rank the best hits with all; "
            "for tasks trained with --matryoshka."
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Search exactly over float16, int8 or binary vectors, and "
            "re-rank the best hits with "
            "full vectors."
        ),
    ] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(help="Memory budget for auto, in GB. Default: half of the free memory."),
    ] = None,
    m: Annotated[
        int | None, typer.Option("--M", help="Links per passage in the graph. Default: 32.")
    ] = None,
    ef_construction: Annotated[
        int | None, typer.Option(help="Candidate list size for building a graph. Default: 100.")
    ] = None,
    ef_search: Annotated[
        int | None, typer.Option(help="Candidate list size for searching a graph. Default: 96.")
    ] = None,
    nlist: Annotated[
        int | None,
        typer.Option(
            help="Inverted lists. Default: 4 times the square root of the passages, at most "
            "passages / 39."
        ),
    ] = None,
    nprobe: Annotated[
        int | None,
        typer.Option(help="Inverted lists probed per query. Default: nlist / 12, at least 8."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed for samples, clusters and rotations. Default: 1234."),
    ] = None,
    refresh: Annotated[
        Path | None,
        typer.Option(
            help="Update this index and VECTORS: encode what changed in --data (all, if the "
            "prompt changed), then replace both."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Current BEIR folder.")] = None,
    task: Annotated[Path | None, typer.Option(help="Current task bundle.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Encoder without a prompt.")] = None,
    database: Annotated[
        str | None,
        typer.Option(
            help="Load VECTORS into this database instead: postgresql://USER@HOST/DATABASE "
            "(pgvector), http://HOST:6333 (Qdrant; key from QDRANT_API_KEY) or qdrant:FOLDER. "
            "The old index of this name is replaced at the end."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the index in the database.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    json: Json = None,
    option: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
) -> None:
    """Build an index over a vector folder, or refresh one with --refresh."""
    try_outputs(json)
    reject_unused_options(
        context,
        without={
            "refresh": ("data", "task", "backbone", "device"),
            **({"bm25": ("language",)} if refresh is None else {}),
        },
        beside={"refresh": ("overwrite",), "database": ("overwrite",)},
    )
    graph = {"M": m, "ef_construction": ef_construction, "ef_search": ef_search}
    options = {**graph, "nlist": nlist, "nprobe": nprobe}
    where = [path for path in (out, refresh, database) if path is not None]
    if len(where) != 1:
        raise ConfigError("expected one of --out INDEX, --refresh INDEX and --database ADDRESS")
    if (database is None) != (name is None):
        raise ConfigError("expected --database ADDRESS and --name NAME together")
    settings: dict[str, Any] = {
        "index_type": index_type,
        "options": {key: value for key, value in options.items() if value is not None}
        | parse_options(option or []),
        "bm25": bm25,
        "language": language,
        "dimensions": dimensions,
        "quantize": quantize,
        "seed": seed,
        "threads": threads,
        "memory_bytes": _bytes(memory_gb),
    }
    start()
    import dptdr

    started = time.perf_counter()
    if refresh is not None:
        if data is None:
            raise ConfigError("expected --data DATA with --refresh, got none")
        encoder = load_encoder(task, backbone, device=device)
        encoder.eval()
        done = dptdr.refresh_index(data, encoder, vectors=vectors, out=refresh, **settings)
        what = "the index was rebuilt" if done.rebuilt else "the index was up to date"
        said = f"{refresh}: {done.encoded:,} passages encoded, {done.kept:,} kept, {what}"
        counts = {"encoded": done.encoded, "kept": done.kept, "rebuilt": done.rebuilt}
        place = {"index": str(refresh), "index_type": done.index.index_type}
        write_result(json, counts | place, said=said)
        return
    with dptdr.build_index(
        vectors, out=out or str(name), database=database, overwrite=overwrite, **settings
    ) as index:
        facts = _facts(index, where=str(out or name), seconds=time.perf_counter() - started)
    write_result(json, facts, said=_message(facts))


def _bytes(gigabytes: float | None) -> int | None:
    if gigabytes is None:
        return None
    if not 0 < gigabytes < math.inf:
        raise ConfigError(f"--memory-gb: expected a finite number above 0, got {gigabytes:g}")
    return int(gigabytes * 1e9)


def _facts(index: "SearchIndex", *, where: str, seconds: float) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "index": where,
        "index_type": index.index.index_type,
        "passages": index.index.count,
        "dim": index.index.dim,
        "seconds": seconds,
        "recall@10": getattr(index.index, "recall", None),
    }
    if index.choice is None:
        return facts
    from dptdr.search.indexes.local import INDEX_FILE

    file = Path(where) / INDEX_FILE
    size = file.stat().st_size if file.is_file() else 0
    return facts | {
        "reason": index.choice.reason,
        "language": getattr(index.index, "language", None),
        "bytes": size,
    }


def _message(facts: dict[str, Any]) -> str:
    line = f"{facts['index']}: {facts['index_type']} over {facts['passages']:,} passages"
    line += f" ({facts['reason']})" if "reason" in facts else ""
    if facts["recall@10"] is not None:
        line += f", recall@10 {facts['recall@10']:.3f}"
    if "bytes" in facts:
        line += f", {facts['bytes'] / 1e6:.1f} MB beside the vectors"
    line += f", {facts['seconds']:.1f} s"
    return f"{line}\nBM25: {facts['language']}" if facts.get("language") else line


def parse_options(options: list[str]) -> dict[str, int]:
    """Parse the former ``--option name=number``."""
    pairs = [option.partition("=")[::2] for option in options]
    broken = [
        option
        for option, (name, value) in zip(options, pairs, strict=True)
        if not name or not value.isdecimal() or len(value) > 18
    ]
    if broken:
        raise ConfigError(f"expected --option name=number, got {', '.join(broken)}")
    return {name: int(value) for name, value in pairs}
