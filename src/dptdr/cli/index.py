"""``dptdr index``: a vector folder becomes searchable, or is renewed."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dptdr.cli.common import refuse_idle
from dptdr.io.resume import try_outputs

if TYPE_CHECKING:
    from dptdr.search.indexes.building import BuildSettings

_BUILD = {"index_type", "M", "ef_construction", "ef_search", "nlist", "nprobe", "seed"} | {
    "threads",
    "memory_gb",
    "bm25",
    "language",
    "dimensions",
    "quantize",
}
_TAKES: dict[str, set[str]] = {
    "--out": _BUILD,
    "--refresh": _BUILD | {"task", "backbone", "data", "device"},
    "--database": {"name", "M", "ef_construction"},
}
"""Options that have an effect on each of the three ways to call the command."""


def command(
    context: typer.Context,
    vectors: Annotated[Path, typer.Argument(help="Vector folder that `dptdr encode` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="Index folder to write; an old one stays until then.")
    ] = None,
    index_type: Annotated[
        str | None,
        typer.Option(
            help="auto (by count and free memory; says why), exact, hnsw, hnsw-sq, ivf-sq, ivf-pq "
            "or rabitq. Default: auto, or with --refresh the old index's type."
        ),
    ] = None,
    m: Annotated[
        int | None, typer.Option("--M", help="Links of a passage in a graph. Default: 32.")
    ] = None,
    ef_construction: Annotated[
        int | None,
        typer.Option(help="Candidates looked at while building a graph. Default: 100."),
    ] = None,
    ef_search: Annotated[
        int | None,
        typer.Option(help="Candidates looked at while searching a graph. Default: 96."),
    ] = None,
    nlist: Annotated[
        int | None,
        typer.Option(help="Inverted lists. Default: 4 times the square root of the passages."),
    ] = None,
    nprobe: Annotated[
        int | None,
        typer.Option(help="Lists searched for a query. Default: a twelfth of them, at least 8."),
    ] = None,
    dimensions: Annotated[
        int | None,
        typer.Option(
            help="Search the first numbers of each vector only, and the best hits again by all; "
            "for tasks trained with --matryoshka."
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Search exactly over float16, int8 or binary numbers, and the best hits again by "
            "full vectors."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Decides samples, clusters and rotations of lists. Default: 1234."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads. Default: all cores; with 1 the same vectors give the same bytes."
        ),
    ] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(help="Gigabytes that auto may plan with. Default: half of what is free."),
    ] = None,
    bm25: Annotated[
        bool,
        typer.Option("--bm25", help="Index the words as well, for `dptdr search --hybrid`."),
    ] = False,
    language: Annotated[
        str | None,
        typer.Option(help="Language of --bm25, such as german. Default: auto, by the texts."),
    ] = None,
    refresh: Annotated[
        Path | None,
        typer.Option(
            help="Renew this index and VECTORS: encode only what changed in --data (all, if the "
            "prompt changed), then exchange both. The old ones serve until then."
        ),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            help="Load VECTORS into this database instead: postgresql://USER@HOST/DATABASE "
            "(pgvector), http://HOST:6333 (Qdrant; key from QDRANT_API_KEY) or qdrant:FOLDER. "
            "What --name stood for serves until then."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the index in --database.")] = None,
    task: Annotated[Path | None, typer.Option(help="Task bundle, for --refresh.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Backbone, for --refresh.")] = None,
    data: Annotated[Path | None, typer.Option(help="BEIR folder, for --refresh.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Torch device, for --refresh. Default: auto.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace whatever index is at OUT.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write type, bytes and time here.")] = None,
    kind: Annotated[str | None, typer.Option(hidden=True)] = None,
    option: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
) -> None:
    """Build an index over a vector folder, or renew one with --refresh."""
    try_outputs(json)
    idle = ("overwrite",)
    refuse_idle(
        context,
        without={"bm25": ("language",)} if refresh is None else {},
        beside={"refresh": idle, "database": idle},
    )
    from dptdr.errors import ConfigError
    from dptdr.search.indexes.building import BuildSettings

    modes = {"--out": out, "--refresh": refresh, "--database": database}
    if sum(where is not None for where in modes.values()) != 1:
        raise ConfigError(
            "expected one of --out INDEX to build, --refresh INDEX to renew, and --database ADDRESS"
        )
    if (database is None) != (name is None):
        raise ConfigError("expected --database ADDRESS and --name NAME together")
    index_type = index_type or kind
    options = {
        "M": m,
        "ef_construction": ef_construction,
        "ef_search": ef_search,
        "nlist": nlist,
        "nprobe": nprobe,
    }
    given = {
        "index_type": index_type,
        **options,
        **{"seed": seed, "threads": threads, "memory_gb": memory_gb, "bm25": bm25 or None},
        **{"dimensions": dimensions, "quantize": quantize, "language": language},
        **{"name": name, "task": task, "backbone": backbone, "data": data, "device": device},
    }
    mode = next(flag for flag, where in modes.items() if where is not None)
    _refuse_without_effect(given, mode=mode)
    asked = {key: value for key, value in options.items() if value is not None}
    asked |= parse_options(option or [])
    if database is not None and name is not None:
        _load(vectors, database, name, options=asked, json=json)
        return
    settings = BuildSettings(
        seed=seed,
        threads=threads or 0,
        memory_bytes=None if memory_gb is None else int(memory_gb * 1e9),
        options=asked,
        dimensions=dimensions,
        quantize=quantize,
        bm25=bm25,
        language=language,
    )
    if out is not None:
        _build(
            vectors,
            out,
            index_type=index_type or "auto",
            settings=settings,
            overwrite=overwrite,
            json=json,
        )
        return
    assert refresh is not None
    if data is None:
        raise ConfigError("expected --data DATA with --refresh, got none")
    from dptdr.api import encoder_of
    from dptdr.io.atomic import write_json
    from dptdr.io.progress import progress
    from dptdr.search.indexes.refresh import refresh_index

    encoder = encoder_of(task=task, backbone=backbone, device=device or "auto")
    encoder.only_encode()
    with progress("encode") as on_progress:
        done = refresh_index(
            encoder,
            data=data,
            vectors=vectors,
            index=refresh,
            index_type=index_type,
            settings=settings,
            on_progress=on_progress,
        )
    what = "the index was built again" if done.rebuilt else "the index was up to date"
    typer.echo(f"{refresh}: {done.encoded:,} passages encoded, {done.kept:,} kept, {what}")
    _warn(done.warning)
    if json is not None:
        report = {"encoded": done.encoded, "kept": done.kept, "rebuilt": done.rebuilt}
        write_json(json, {"index": str(refresh), "index_type": done.index.index_type, **report})


def _refuse_without_effect(given: Mapping[str, Any], *, mode: str) -> None:
    from dptdr.errors import ConfigError

    idle = [key for key, value in given.items() if value is not None and key not in _TAKES[mode]]
    if idle:
        flags = ", ".join("--" + key.replace("_", "-") for key in idle)
        raise ConfigError(f"{flags} has no effect with {mode}; leave it out")


def _build(
    vectors: Path,
    out: Path,
    *,
    index_type: str,
    settings: "BuildSettings",
    overwrite: bool,
    json: Path | None,
) -> None:
    import time

    from dptdr.io.atomic import write_json
    from dptdr.io.progress import progress
    from dptdr.search.indexes.building import build_index
    from dptdr.search.indexes.local import GRAPH
    from dptdr.search.vectors.folder import VectorFolder

    started = time.perf_counter()
    with progress("index") as on_progress:
        index, choice = build_index(
            VectorFolder(vectors),
            out=out,
            index_type=index_type,
            settings=settings,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    seconds = time.perf_counter() - started
    file = out / GRAPH
    size = file.stat().st_size if file.is_file() else 0
    found = "" if choice.recall is None else f"recall@10 {choice.recall:.3f}, "
    typer.echo(
        f"{out}: {index.index_type} over {index.count:,} passages ({choice.reason}), "
        f"{found}{size / 1e6:.1f} MB beside the vectors, {seconds:.1f} s"
    )
    if index.language is not None:
        typer.echo(f"BM25: {index.language}")
    _warn(choice.warning)
    if json is not None:
        report = {
            "index": str(out),
            "index_type": index.index_type,
            "reason": choice.reason,
            "recall@10": choice.recall,
            "passages": index.count,
            "dim": index.dim,
            "bytes": size,
            "seconds": seconds,
        }
        write_json(json, report)


def _warn(text: str | None) -> None:
    if text is not None:
        typer.echo(f"warning: {text}", err=True)


def _load(
    vectors: Path, database: str, name: str, *, options: dict[str, int], json: Path | None
) -> None:
    import time

    from dptdr.io.atomic import write_json
    from dptdr.io.progress import progress
    from dptdr.search.indexes.recall import recall_warning
    from dptdr.search.stores.addresses import load_database
    from dptdr.search.vectors.folder import VectorFolder

    started = time.perf_counter()
    with progress("load") as on_progress:
        index = load_database(
            VectorFolder(vectors),
            address=database,
            name=name,
            options=options,
            on_progress=on_progress,
        )
    seconds = time.perf_counter() - started
    report: dict[str, Any] = {
        "index": name,
        "index_type": index.index_type,
        "passages": index.count,
        "dim": index.dim,
    }
    recall = report["recall@10"] = index.recall
    index.close()
    found = "" if recall is None else f"recall@10 {recall:.3f}, "
    typer.echo(
        f"{name}: {report['index_type']} over {report['passages']:,} passages, {found}"
        f"{seconds:.1f} s"
    )
    if recall is not None:
        _warn(recall_warning(recall, advice="raise M or ef_construction"))
    if json is not None:
        write_json(json, {**report, "seconds": seconds})


def parse_options(options: list[str]) -> dict[str, int]:
    """Return the options that the former ``--option name=number`` gives.

    Args:
        options: Each as ``name=number``.

    Returns:
        Names and numbers.

    Raises:
        ConfigError: If one is not of that form; all are listed.
    """
    from dptdr.errors import ConfigError

    pairs = [option.partition("=")[::2] for option in options]
    broken = [
        option
        for option, (name, value) in zip(options, pairs, strict=True)
        if not name or not value.isdecimal() or len(value) > 18
    ]
    if broken:
        raise ConfigError(f"expected --option name=number, got {', '.join(broken)}")
    return {name: int(value) for name, value in pairs}
