"""``dptdr evaluate``: what a task, a bare backbone, BM25 or a finished run is worth."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from dptdr.evaluation.report import EvaluationReport
    from dptdr.io.beir import BeirFolder
    from dptdr.records import Query, Run

Protocol = Literal["msmarco", "nq"]
_EXACTLY_ONE = "--task, --backbone, --bm25 or --run"


def command(
    data: Annotated[
        Path | None, typer.Argument(help="BEIR folder; not needed with --protocol.")
    ] = None,
    task: Annotated[Path | None, typer.Option(help="Measure this task bundle.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Measure this bare encoder: `minilm`, a folder or a hub name."),
    ] = None,
    bm25: Annotated[bool, typer.Option("--bm25", help="Measure BM25.")] = False,
    run: Annotated[Path | None, typer.Option(help="Measure this finished TREC run file.")] = None,
    split: Annotated[str, typer.Option(help="Which qrels/SPLIT.tsv to answer.")] = "test",
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure as ir_measures names it, may be repeated. Default: nDCG@10, RR@10, R@100."
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            min=1, help="Passages ranked per query. Default: what the measures need, at least 100."
        ),
    ] = None,
    run_out: Annotated[
        Path | None, typer.Option(help="Write the ranking to this TREC run file.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write the report, with values per query, to this file.")
    ] = None,
    protocol: Annotated[
        Protocol | None,
        typer.Option(help="Measure --run by official rules: msmarco or nq (DPR's)."),
    ] = None,
    qrels: Annotated[
        Path | None,
        typer.Option(help="Judgements for --protocol; for nq the question file (.qa.csv)."),
    ] = None,
    passages: Annotated[
        Path | None,
        typer.Option(help="psgs_w100.tsv or corpus.jsonl that the run names, for nq."),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="queries.jsonl that tells which id is which question, for nq. "
            "Default: ids are the questions' numbers in the file, from 0."
        ),
    ] = None,
    matching: Annotated[
        Literal["string", "regex"],
        typer.Option(help="Answers of nq are texts, or regular expressions (CuratedTREC)."),
    ] = "string",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes (nq) or threads (BM25). Default: one per processor core."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where the encoder runs: cpu, cuda, cuda:1.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Number format: float32, bfloat16.")] = "float32",
) -> None:
    """Measure one system on the judged queries of a split, or a finished run.

    Every judged query counts, one without an answer as 0.
    """
    from dptdr.errors import ConfigError

    workers = workers or os.cpu_count() or 1
    if protocol is not None:
        _refuse_with_protocol(data=data, task=task, backbone=backbone, bm25=bm25)
        report = _measure_by_protocol(
            protocol,
            qrels=qrels,
            run=run,
            passages=passages,
            queries=queries,
            matching=matching,
            workers=workers,
        )
    else:
        given = [task is not None, backbone is not None, bm25, run is not None]
        if data is None:
            raise ConfigError("expected a BEIR folder to evaluate on, or --protocol with --qrels")
        if sum(given) != 1:
            raise ConfigError(f"expected exactly one of {_EXACTLY_ONE}, found {sum(given)}")
        report = _measure_on_folder(
            data,
            split=split,
            system=_System(
                task=task, backbone=backbone, run=run, device=device, dtype=dtype, threads=workers
            ),
            measures=measure or [],
            depth=depth,
            run_out=run_out,
        )
    typer.echo(_table(report))
    if json is not None:
        report.write(json)


class _System:
    """What ranks: a task, a backbone, a finished run, or BM25 where none of them is given."""

    def __init__(
        self,
        *,
        task: Path | None,
        backbone: str | None,
        run: Path | None,
        device: str,
        dtype: str,
        threads: int,
    ) -> None:
        self.task, self.backbone, self.run = task, backbone, run
        self.device, self.dtype, self.threads = device, dtype, threads

    def rank(
        self, folder: "BeirFolder", *, queries: Sequence["Query"], depth: int
    ) -> tuple["Run", str, dict[str, Any]]:
        """Return the run, the system's name and what identifies it."""
        from dptdr.io.progress import progress

        if self.run is not None:
            from dptdr.evaluation import read_run

            return read_run(self.run), self.run.stem, {"run": str(self.run)}
        if self.task is None and self.backbone is None:
            from dptdr.search.bm25 import K1, B, Bm25Index

            with progress("index") as on_progress:
                index = Bm25Index.build(folder.passages(), on_progress=on_progress)
            with progress("search") as on_progress:
                run = index.search(
                    queries, depth=depth, threads=self.threads, on_progress=on_progress
                )
            return run, "bm25", {"k1": K1, "b": B}
        from dptdr.model import load_encoder
        from dptdr.search.retrieve import retrieve

        encoder = load_encoder(
            task=self.task, backbone=self.backbone, device=self.device, dtype=self.dtype
        )
        with progress("encode") as on_progress:
            run = retrieve(
                encoder,
                queries=queries,
                passages=list(folder.passages()),
                depth=depth,
                on_progress=on_progress,
            )
        fingerprints = {
            "backbone": encoder.backbone_fingerprint,
            "query": encoder.query_fingerprint,
            "passage": encoder.passage_fingerprint,
        }
        kind = "task" if self.task is not None else "backbone"
        return run, f"{kind}:{encoder.name}", {"fingerprints": fingerprints}


def _measure_on_folder(
    data: Path,
    *,
    split: str,
    system: _System,
    measures: list[str],
    depth: int | None,
    run_out: Path | None,
) -> "EvaluationReport":
    from dptdr.errors import DataError
    from dptdr.evaluation import DEFAULT_MEASURES, evaluate, write_run
    from dptdr.evaluation.measures import parse_measures
    from dptdr.evaluation.report import EvaluationReport, judgements_fingerprint
    from dptdr.io.beir import BeirFolder

    folder = BeirFolder(data)
    judged = folder.qrels(split)
    names = measures or list(DEFAULT_MEASURES)
    cutoffs = [_cutoff(measure) for measure in parse_measures(names).values()]
    depth = depth or max(100, *cutoffs)
    queries = [query for query in folder.queries() if query.id in judged]
    missing = judged.keys() - {query.id for query in queries}
    if missing:
        raise DataError(
            f"{len(missing)} judged queries have no text, such as '{min(missing)}'; "
            "`dptdr data inspect` lists them",
            path=folder.path / "queries.jsonl",
        )
    run, name, identity = system.rank(folder, queries=queries, depth=depth)
    evaluation = evaluate(run, judged, measures=names)
    if run_out is not None:
        write_run(run_out, run, tag=name.replace(" ", "_"))
    return EvaluationReport(
        system=name,
        data=folder.name,
        split=split,
        judgements_fingerprint=judgements_fingerprint(judged),
        protocol="ir_measures",
        measures=evaluation.measures,
        per_query=evaluation.per_query,
        queries=evaluation.queries,
        details={
            **identity,
            "data_fingerprint": folder.fingerprint(),
            "depth": depth,
            "unanswered": evaluation.unanswered,
        },
    )


def _cutoff(measure: Any) -> int:
    # A measure without a cutoff looks as deep as the ranking goes.
    return int(measure["cutoff"]) if "cutoff" in measure.params else 1000


def _refuse_with_protocol(
    *, data: Path | None, task: Path | None, backbone: str | None, bm25: bool
) -> None:
    from dptdr.errors import ConfigError

    given = {"DATA": data, "--task": task, "--backbone": backbone, "--bm25": bm25 or None}
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise ConfigError(
            f"--protocol measures a finished run: give --run and --qrels, not {', '.join(extra)} "
            "(`dptdr evaluate DATA ... --run-out F` writes a run)"
        )


def _measure_by_protocol(
    protocol: Protocol,
    *,
    qrels: Path | None,
    run: Path | None,
    passages: Path | None,
    queries: Path | None,
    matching: Literal["string", "regex"],
    workers: int,
) -> "EvaluationReport":
    from dptdr.errors import ConfigError

    needed = {"--qrels": qrels, "--run": run}
    if protocol == "nq":
        needed["--passages"] = passages
    absent = [name for name, value in needed.items() if value is None]
    if qrels is None or run is None or absent:
        raise ConfigError(f"--protocol {protocol} needs {', '.join(absent)}")
    if protocol == "msmarco":
        return _msmarco(qrels=qrels, run=run)
    assert passages is not None
    return _nq(
        qrels=qrels,
        run=run,
        passages=passages,
        queries=queries,
        matching=matching,
        workers=workers,
    )


def _msmarco(*, qrels: Path, run: Path) -> "EvaluationReport":
    from dptdr.evaluation import read_qrels
    from dptdr.evaluation.protocols.msmarco import DEFINITIONS, evaluate_msmarco, read_ranks
    from dptdr.evaluation.report import EvaluationReport, judgements_fingerprint

    judged = read_qrels(qrels)
    result = evaluate_msmarco(read_ranks(run), judged)
    return EvaluationReport(
        system=run.stem,
        data=qrels.stem,
        split="",
        judgements_fingerprint=judgements_fingerprint(judged),
        protocol="msmarco",
        measures=result.measures,
        per_query=result.per_query,
        queries=result.queries,
        details={
            "run": str(run),
            "ranked": result.ranked,
            "deepest_rank": result.deepest_rank,
            "definitions": DEFINITIONS,
        },
    )


def _nq(
    *,
    qrels: Path,
    run: Path,
    passages: Path,
    queries: Path | None,
    matching: Literal["string", "regex"],
    workers: int,
) -> "EvaluationReport":
    from dptdr.evaluation import read_run
    from dptdr.evaluation.protocols import dpr as nq
    from dptdr.evaluation.report import EvaluationReport
    from dptdr.io.atomic import sha256_file
    from dptdr.io.progress import progress

    questions = nq.read_questions(qrels)
    answers = nq.prepare_questions(questions, matching=matching, path=qrels)
    ranking = read_run(run)
    ids = [str(number) for number in range(len(questions))]
    if queries is not None:
        ids = nq.match_query_ids(questions, queries=queries, ranked=ranking.keys())
    with progress("match") as on_progress:
        result = nq.evaluate_nq(
            ranking,
            answers,
            query_ids=ids,
            passages=nq.read_passage_texts(passages),
            workers=workers,
            on_progress=on_progress,
        )
    return EvaluationReport(
        system=run.stem,
        data=qrels.stem,
        split="",
        judgements_fingerprint=sha256_file(qrels),
        protocol="nq",
        measures=result.measures,
        per_query=result.per_query,
        queries=result.queries,
        details={
            "run": str(run),
            "matching": matching,
            "unanswered": result.unanswered,
            "passages_matched": result.passages_matched,
        },
    )


def _table(report: "EvaluationReport") -> str:
    from dptdr.evaluation.comparison_report import markdown_table

    where = f"{report.data}, {report.split}" if report.split else report.data
    rows = [["system", "queries", *report.measures]]
    values = [f"{value:.4f}" for value in report.measures.values()]
    rows.append([report.system, f"{report.queries:,}", *values])
    lines = [where, "", *markdown_table(rows)]
    if report.details.get("unanswered"):
        lines += ["", f"queries without any passage, counted as 0: {report.details['unanswered']}"]
    if report.protocol == "msmarco":
        definitions = report.details["definitions"]
        lines += ["", *(f"{name}: {definitions[name]}" for name in report.measures)]
        lines.append(
            f"queries ranked: {report.details['ranked']:,} of {report.queries:,}; "
            f"deepest rank: {report.details['deepest_rank']:,}"
        )
    return "\n".join(lines)
