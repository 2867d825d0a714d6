"""``dptdr search``: the passages of an index that answer a text, or all queries of a split."""

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dptdr.cli.common import Device, refuse_idle
from dptdr.io.resume import try_outputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dptdr.records import Hit, Query
    from dptdr.search.index import Index
    from dptdr.search.pipeline import Pipeline
    from dptdr.search.vectors.documents import Document

_SEARCHING = ("task", "backbone", "depth", "filter", "hybrid", "rerank", "device", "json")


def command(
    context: typer.Context,
    index: Annotated[
        Path, typer.Argument(help="Index folder that `dptdr index` wrote, or name in --database.")
    ],
    text: Annotated[str | None, typer.Argument(help="What to search for.")] = None,
    task: Annotated[Path | None, typer.Option(help="Task bundle that encodes the query.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Bare backbone that encodes the query.")
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option("--depth", "-k", min=1, help="Hits. Default: 10, for --queries 100."),
    ] = None,
    filter: Annotated[
        list[str] | None,
        typer.Option(
            help="Only passages whose metadata says so: field=value or field=a,b. May be given "
            "several times; all must hold."
        ),
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(help="BEIR folder: search all queries of its split instead.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of --queries.")] = "test",
    id_prefix: Annotated[
        str | None,
        typer.Option(
            help="Search the queries whose ids begin so instead of a split's, judged or not."
        ),
    ] = None,
    keep_identical: Annotated[
        bool,
        typer.Option("--keep-identical", help="Let a query that is a passage find itself."),
    ] = False,
    run_out: Annotated[
        Path | None, typer.Option(help="TREC run file to write, with --queries.")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(help="Database that holds the index, as for `dptdr index --database`."),
    ] = None,
    hybrid: Annotated[
        str | None,
        typer.Option(
            help="Merge with BM25 (of `dptdr index --bm25`): rrf (ranks), min-max or z-score "
            "(scaled scores)."
        ),
    ] = None,
    dense_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the vectors in --hybrid, 0 to 1.")
    ] = 0.5,
    tune_on: Annotated[
        str | None,
        typer.Option(
            help="Split of --queries on which --hybrid's weight is tuned (nDCG@10) beforehand, "
            "such as dev."
        ),
    ] = None,
    rerank: Annotated[
        str | None,
        typer.Option(help="Cross-encoder (name or folder) that scores the best hits again."),
    ] = None,
    rerank_top: Annotated[
        int, typer.Option(min=1, help="Hits of each query that --rerank scores.")
    ] = 50,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check every file of the index against its checksum first; alone, do only that.",
        ),
    ] = False,
    device: Device = "auto",
    json: Annotated[Path | None, typer.Option(help="Write hits with their texts here.")] = None,
) -> None:
    """Search an index with a text, or with all queries of a split.

    An index whose vectors another prompt or backbone made is refused.
    """
    try_outputs(json, run_out)
    refuse_idle(
        context,
        without={
            "queries": ("split", "id_prefix", "keep_identical", "run_out", "tune_on"),
            "hybrid": ("dense_weight", "tune_on"),
            "rerank": ("rerank_top",),
        },
        beside={"id_prefix": ("split",), "tune_on": ("dense_weight",)},
    )
    from dptdr.errors import ConfigError

    if verify:
        alone = text is None and queries is None
        if alone:
            refuse_idle(context, beside={"verify": _SEARCHING})
        typer.echo(_verify(index, database))
        if alone:
            return
    if (text is None) == (queries is None):
        raise ConfigError('expected either a text, as in `dptdr search INDEX "text"`, or --queries')
    if queries is not None and run_out is None:
        raise ConfigError("expected --run-out FILE with --queries, got none")
    from dptdr.api import encoder_of
    from dptdr.records import Query
    from dptdr.search.index import check_encoder
    from dptdr.search.pipeline import TEXT_ID, Pipeline, parse_fusion
    from dptdr.search.rerank import cross_encoder
    from dptdr.search.vectors.documents import Filter

    filters = tuple(Filter.parse(condition) for condition in filter or [])
    fusion = None if hybrid is None else parse_fusion(hybrid)
    with _opened(index, database) as opened:
        encoder = encoder_of(task=task, backbone=backbone, device=device)
        check_encoder(opened.origin, encoder, where=index)
        pipeline = Pipeline(
            opened,
            encoder,
            fusion=fusion,
            dense_weight=dense_weight,
            scorer=None if rerank is None else cross_encoder(rerank, device=device),
            rerank_top=rerank_top,
        )
        if tune_on is not None and queries is not None:
            typer.echo(_tune(pipeline, queries, tune_on))
        asked = (
            [Query(TEXT_ID, text)] if text is not None else _queries_of(queries, split, id_prefix)
        )
        started = time.perf_counter()
        wanted = depth or (10 if text is not None else 100)
        run = pipeline.search(asked, depth=wanted, filters=filters, keep_identical=keep_identical)
        seconds = time.perf_counter() - started
        if text is not None:
            _print_hits(opened, text, run[TEXT_ID], json=json)
            return
        assert run_out is not None
        _write_run(run_out, run, tag=encoder.name, seconds=seconds, json=json)


@contextlib.contextmanager
def _opened(index: Path, database: str | None) -> "Iterator[Index]":
    """Open an index folder, or an index in a database until the block ends."""
    from dptdr.search.indexes.local import open_index
    from dptdr.search.stores.addresses import open_database

    if database is None:
        yield open_index(index)
        return
    found = open_database(database, str(index))
    try:
        yield found
    finally:
        found.close()


def _verify(index: Path, database: str | None) -> str:
    """Check all checksums of an index folder and say so."""
    from dptdr.errors import ConfigError
    from dptdr.search.indexes.local import open_index

    if database is not None:
        raise ConfigError("--verify has no effect with --database, which keeps no checksums")
    opened = open_index(index)
    opened.verify()
    return f"{index}: {opened.count:,} passages, all files are as written"


def _tune(pipeline: "Pipeline", data: Path, split: str) -> str:
    """Tune the weight on a split and say what came out."""
    from dptdr.io.beir import BeirFolder

    tuned = pipeline.tune(_queries_of(data, split), BeirFolder(data).qrels(split))
    return (
        f"dense weight {pipeline.dense_weight:g}, tuned on {split}: {tuned.measure} "
        f"{tuned.value:.4f} (vectors alone {tuned.tried[1.0, 0.0]:.4f}, BM25 alone "
        f"{tuned.tried[0.0, 1.0]:.4f})"
    )


def _queries_of(data: Path | None, split: str, begin: str | None = None) -> "Sequence[Query]":
    """Return the judged queries of a split, or those of a beginning, in file order."""
    from dptdr.errors import ConfigError
    from dptdr.io.beir import BeirFolder

    assert data is not None
    folder = BeirFolder(data)
    if begin is not None:
        found = [query for query in folder.queries() if query.id.startswith(begin)]
        if not found:
            raise ConfigError(f"--id-prefix {begin}: no query of {data} has such an id")
        return found
    judged = folder.qrels(split)
    return [query for query in folder.queries() if query.id in judged]


def _print_hits(index: "Index", text: str, hits: "list[Hit]", *, json: Path | None) -> None:
    from dptdr.io.atomic import write_json

    documents = index.documents([hit.passage_id for hit in hits])
    for rank, (hit, document) in enumerate(zip(hits, documents, strict=True), start=1):
        typer.echo(f"{rank:>3}  {hit.score:.4f}  {hit.passage_id}  {_line_of(document)}")
    if not hits:
        typer.echo("no passage was found")
    if json is not None:
        found = zip(hits, documents, strict=True)
        write_json(json, {"query": text, "hits": [_as_json(*pair) for pair in found]})


def _line_of(document: "Document", width: int = 120) -> str:
    """Return title and beginning of the text in one line."""
    passage, _ = document
    snippet = " ".join(passage.text.split())
    if len(snippet) > width:
        snippet = snippet[: width - 1].rsplit(" ", 1)[0] + "…"
    return f"{passage.title} | {snippet}" if passage.title else snippet


def _as_json(hit: "Hit", document: "Document") -> dict[str, Any]:
    passage, metadata = document
    record: dict[str, Any] = {
        "id": passage.id,
        "score": hit.score,
        "title": passage.title,
        "text": passage.text,
    }
    return record | ({"metadata": dict(metadata)} if metadata else {})


def _write_run(
    path: Path, run: "dict[str, list[Hit]]", *, tag: str, seconds: float, json: Path | None
) -> None:
    from dptdr.evaluation import write_run
    from dptdr.io.atomic import write_json

    # A run file separates its fields by white space.
    write_run(path, run, tag="_".join(tag.split()))
    hits = sum(len(found) for found in run.values())
    typer.echo(f"{path}: {len(run):,} queries, {hits:,} hits, {seconds:.1f} s")
    if json is not None:
        write_json(json, {"run": str(path), "queries": len(run), "hits": hits, "seconds": seconds})
