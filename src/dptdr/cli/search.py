"""``dptdr search``: search an index with a text, or with all queries of a split."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dptdr.cli.common import (
    Device,
    Json,
    KeepIdentical,
    load_encoder,
    reject_unused_options,
    start,
    write_result,
)
from dptdr.errors import ConfigError
from dptdr.io.outputs import try_outputs

if TYPE_CHECKING:
    from dptdr.search.retriever import SearchIndex, SearchResult

_SEARCHING = ("task", "backbone", "depth", "filter", "hybrid", "rerank", "device", "json")
_WIDTH = 120

PANELS = {
    "Many queries": ("queries", "split", "id_prefix", "keep_identical", "run_out"),
    "Merging and ranking again": ("hybrid", "dense_weight", "tune_on", "rerank", "rerank_top"),
}


def command(
    context: typer.Context,
    index: Annotated[
        Path, typer.Argument(help="Index folder from `dptdr index`, or name in --database.")
    ],
    text: Annotated[str | None, typer.Argument(help="What to search for.")] = None,
    task: Annotated[Path | None, typer.Option(help="Task bundle to encode queries.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Encoder without a prompt for the query.")
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            "--depth", "-k", min=1, help="Number of hits. Default: 10, or 100 with --queries."
        ),
    ] = None,
    filter: Annotated[
        list[str] | None,
        typer.Option(
            help="Only passages with this metadata: field=value or field=a,b (a backslash before "
            "a comma that is part of a value). If repeated, all must hold."
        ),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(help="Database that holds the index, as for `dptdr index --database`."),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="First verify the checksums of all files of the index; "
            "without a query, do only that.",
        ),
    ] = False,
    queries: Annotated[
        Path | None, typer.Option(help="BEIR folder: search all queries of its split instead.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of --queries.")] = "test",
    id_prefix: Annotated[
        str | None,
        typer.Option(
            help="Instead, search all queries whose ids start with this prefix, judged or not."
        ),
    ] = None,
    keep_identical: KeepIdentical = False,
    run_out: Annotated[
        Path | None, typer.Option(help="TREC run file to write, with --queries.")
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
        typer.Option(help="Cross-encoder (name or folder) for re-ranking the best hits."),
    ] = None,
    rerank_top: Annotated[int, typer.Option(min=1, help="Hits per query to re-rank.")] = 50,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Search an index with a text, or with all queries of a split.

    The index must have been built with the same prompt and backbone.
    """
    try_outputs(json, run_out)
    reject_unused_options(
        context,
        without={
            "queries": ("split", "id_prefix", "keep_identical", "run_out", "tune_on"),
            "hybrid": ("dense_weight", "tune_on"),
            "rerank": ("rerank_top",),
        },
        beside={"id_prefix": ("split",), "tune_on": ("dense_weight",)},
    )
    if verify:
        alone = text is None and queries is None
        if alone:
            reject_unused_options(context, beside={"verify": _SEARCHING})
        typer.echo(_verified(index, database))
        if alone:
            return
    if (text is None) == (queries is None):
        raise ConfigError('expected either a text, as in `dptdr search INDEX "text"`, or --queries')
    if queries is not None and run_out is None:
        raise ConfigError("expected --run-out FILE with --queries, got none")
    start()
    import dptdr
    from dptdr.search.vectors.documents import Filter

    filters = [Filter.parse(condition) for condition in filter or []]
    with dptdr.open_index(
        index,
        load_encoder(task, backbone, device=device),
        database=database,
        hybrid=hybrid,
        dense_weight=dense_weight,
        rerank=rerank,
        rerank_top=rerank_top,
        device=device,
    ) as opened:
        if text is not None:
            hits = opened.search(text, k=depth or 10, filters=filters)
            found = {"query": text, "hits": [_as_json(hit) for hit in hits]}
            lines = [_line(rank, hit) for rank, hit in enumerate(hits, start=1)]
            write_result(json, found, said="\n".join(lines) or "no passages found")
            return
        assert queries is not None
        if tune_on is not None:
            if tune_on == split and id_prefix is None:
                raise ConfigError(
                    f"--tune-on {tune_on}: expected another split than the searched one, on which "
                    "the tuned weight would look better than it is"
                )
            typer.echo(_tune(opened, queries, tune_on), err=str(json) == "-")
        started = time.perf_counter()
        run = dptdr.retrieve(
            queries,
            opened,
            split=split,
            id_prefix=id_prefix,
            depth=depth or 100,
            filters=filters,
            keep_identical=keep_identical,
            out=run_out,
        )
    seconds, count = time.perf_counter() - started, sum(len(found) for found in run.values())
    facts = {"run": str(run_out), "queries": len(run), "hits": count, "seconds": seconds}
    said = f"{run_out}: {len(run):,} queries, {count:,} hits, {seconds:.1f} s"
    write_result(json, facts, said=said)


def _verified(index: Path, database: str | None) -> str:
    """Verify all checksums of an index folder and describe the result."""
    from dptdr.search.indexes.local import open_index

    if database is not None:
        raise ConfigError("--verify has no effect with --database, which keeps no checksums")
    opened = open_index(index)
    opened.verify()
    return f"{index}: {opened.count:,} passages, all files are as written"


def _tune(index: "SearchIndex", data: Path, split: str) -> str:
    """Tune the weight on a split and describe the result."""
    from dptdr.io.beir import BeirFolder
    from dptdr.search.ranking import judged_queries

    tuned = index.tune(*judged_queries(BeirFolder(data), split))
    return (
        f"dense weight {index.dense_weight:g}, tuned on {split}: {tuned.measure} "
        f"{tuned.value:.4f} (vectors alone {tuned.tried[1.0, 0.0]:.4f}, BM25 alone "
        f"{tuned.tried[0.0, 1.0]:.4f})"
    )


def _line(rank: int, hit: "SearchResult") -> str:
    """Format rank, score, id, title and the start of the text on one line."""
    snippet = " ".join(hit.text.split())
    if len(snippet) > _WIDTH:
        snippet = snippet[: _WIDTH - 1].rsplit(" ", 1)[0] + "…"
    shown = f"{hit.title} | {snippet}" if hit.title else snippet
    return f"{rank:>3}  {hit.score:.4f}  {hit.id}  {shown}"


def _as_json(hit: "SearchResult") -> dict[str, Any]:
    record = hit._asdict()
    metadata = dict(record.pop("metadata"))
    return record | ({"metadata": metadata} if metadata else {})
