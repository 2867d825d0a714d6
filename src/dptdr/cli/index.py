"""``dptdr index``: a vector folder becomes searchable, or is renewed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dptdr.search.indexes.building import BuildSettings


def command(
    vectors: Annotated[Path, typer.Argument(help="Vector folder that `dptdr encode` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="Index folder to write; an old one stays until then.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="auto (by count and free memory; says why), exact, hnsw, hnsw-sq, ivf-sq, ivf-pq "
            "or rabitq. Default: auto, or with --refresh the old index's kind."
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="Option of the kind as name=number: links, build_width, search_width (graphs), "
            "lists, probes (lists). May be given several times."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides samples, clusters and rotations.")] = 1234,
    threads: Annotated[
        int,
        typer.Option(help="Threads, 0 for all cores; with 1 the same vectors give the same bytes."),
    ] = 0,
    memory_gb: Annotated[
        float | None,
        typer.Option(help="Gigabytes that auto may plan with. Default: half of what is free."),
    ] = None,
    bm25: Annotated[
        bool,
        typer.Option("--bm25", help="Index the words as well, for `dptdr search --hybrid`."),
    ] = False,
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
    device: Annotated[str, typer.Option(help="Torch device, for --refresh.")] = "cpu",
    json: Annotated[Path | None, typer.Option(help="Write kind, bytes and time here.")] = None,
) -> None:
    """Build an index over a vector folder, or renew one with --refresh."""
    from dptdr.errors import ConfigError
    from dptdr.search.indexes.building import BuildSettings

    if sum(where is not None for where in (out, refresh, database)) != 1:
        raise ConfigError(
            "expected one of --out INDEX to build, --refresh INDEX to renew, and --database ADDRESS"
        )
    if (database is None) != (name is None):
        raise ConfigError("expected --database ADDRESS and --name NAME together")
    if database is not None and name is not None:
        _load(vectors, database, name, json=json)
        return
    settings = BuildSettings(
        seed=seed,
        threads=threads,
        memory_bytes=None if memory_gb is None else int(memory_gb * 1e9),
        options=parse_options(option or []),
        bm25=bm25,
    )
    if out is not None:
        _build(vectors, out, kind=kind or "auto", settings=settings, json=json)
        return
    assert refresh is not None
    if data is None:
        raise ConfigError("expected --data DATA with --refresh, got none")
    from dptdr.cli.encode import load_corpus_encoder
    from dptdr.io.atomic import write_json
    from dptdr.io.progress import progress
    from dptdr.search.indexes.refresh import refresh_index

    encoder = load_corpus_encoder(task=task, backbone=backbone, device=device)
    with progress("encode") as on_progress:
        done = refresh_index(
            encoder,
            data=data,
            vectors=vectors,
            index=refresh,
            kind=kind,
            settings=settings if option or bm25 else None,
            on_progress=on_progress,
        )
    what = "the index was built again" if done.rebuilt else "the index was up to date"
    typer.echo(f"{refresh}: {done.encoded:,} passages encoded, {done.kept:,} kept, {what}")
    if json is not None:
        report = {"encoded": done.encoded, "kept": done.kept, "rebuilt": done.rebuilt}
        write_json(json, {"index": str(refresh), "kind": done.index.kind, **report})


def _build(
    vectors: Path, out: Path, *, kind: str, settings: "BuildSettings", json: Path | None
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
            VectorFolder(vectors), out=out, kind=kind, settings=settings, on_progress=on_progress
        )
    seconds = time.perf_counter() - started
    file = out / GRAPH
    size = file.stat().st_size if file.is_file() else 0
    typer.echo(
        f"{out}: {index.kind} over {index.count:,} passages ({choice.reason}), "
        f"{size / 1e6:.1f} MB beside the vectors, {seconds:.1f} s"
    )
    if json is not None:
        report = {
            "index": str(out),
            "kind": index.kind,
            "reason": choice.reason,
            "passages": index.count,
            "dim": index.dim,
            "bytes": size,
            "seconds": seconds,
        }
        write_json(json, report)


def _load(vectors: Path, database: str, name: str, *, json: Path | None) -> None:
    import time

    from dptdr.io.atomic import write_json
    from dptdr.io.progress import progress
    from dptdr.search.stores.addresses import load_database
    from dptdr.search.vectors.folder import VectorFolder

    started = time.perf_counter()
    with progress("load") as on_progress:
        index = load_database(
            VectorFolder(vectors), address=database, name=name, on_progress=on_progress
        )
    seconds = time.perf_counter() - started
    report = {"index": name, "kind": index.kind, "passages": index.count, "dim": index.dim}
    index.close()
    typer.echo(f"{name}: {report['kind']} over {report['passages']:,} passages, {seconds:.1f} s")
    if json is not None:
        write_json(json, {**report, "seconds": seconds})


def parse_options(options: list[str]) -> tuple[tuple[str, int], ...]:
    """Return the options of a kind.

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
        if not name or not value.isdecimal()
    ]
    if broken:
        raise ConfigError(f"expected --option name=number, got {', '.join(broken)}")
    return tuple((name, int(value)) for name, value in pairs)
