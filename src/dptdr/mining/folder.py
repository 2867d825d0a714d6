"""Mine a data folder: validation, sources, negatives, report."""

import functools
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dptdr.errors import ConfigError
from dptdr.io.atomic import writing
from dptdr.io.beir import BeirFolder
from dptdr.io.identical import check_not_judged, is_own_passage, report_own_passages
from dptdr.io.resume import claim
from dptdr.io.store import PassageStore
from dptdr.mining.counting import MiningInputs
from dptdr.mining.pipeline import mine
from dptdr.mining.quality import measure_removal
from dptdr.mining.report import mining_report
from dptdr.mining.settings import FilteringSettings, MiningSettings, check_filtering
from dptdr.mining.sources import (
    TEACHERS,
    Machine,
    MiningContext,
    open_context,
    source_identity,
    source_probe,
)

if TYPE_CHECKING:
    from dptdr.mining.sources import Encoders


@dataclass(frozen=True, kw_only=True)
class MineRequest:
    """A mining request; see the options of ``dptdr mine``."""

    data: Path
    out: Path
    settings: MiningSettings
    split: str = "train"
    keep_identical: bool = False
    teacher: str | None = None
    judged_split: str | None = None
    cache: Path | None = None
    machine: Machine = field(default_factory=Machine)


def mine_folder(
    request: MineRequest, *, show: Callable[[str], Any], overwrite: bool = False
) -> dict[str, Any]:
    """Mine negatives from a data folder; calling it again returns the report immediately.

    Args:
        overwrite: Start over, discarding the output and ``OUT.partial``.

    Raises:
        DataError: If the data or a run file is malformed.
        OutputError: If the existing output has other settings, another process is writing it, or it
            cannot be written.
        NegativesError: If mining cannot continue; finished work stays in ``OUT.partial``.
    """
    work = request.out.with_name(request.out.name + ".partial")
    with claim(request.out) as output:
        output.refuse_unrelated(work, ours=("cache", "runs"))
        folder = BeirFolder(request.data)
        encoders: "Encoders" = {}
        inputs = _inputs(request, folder, encoders=encoders)
        if overwrite:
            with writing(work):
                shutil.rmtree(work, ignore_errors=not work.exists())
        # Keep vectors and runs: they depend on their own inputs only and suit other settings too.
        if not output.begin(inputs, work=work / "mined", overwrite=overwrite):
            output.finish(_mine(request, folder, work=work, encoders=encoders, show=show))
        shutil.rmtree(work, ignore_errors=True)
        return dict(output.result)


def _inputs(request: MineRequest, folder: BeirFolder, *, encoders: "Encoders") -> dict[str, Any]:
    """Return everything the negatives depend on: the sources' contents, not their paths."""
    identity = functools.partial(source_identity, machine=request.machine, encoders=encoders)
    probe = functools.partial(source_probe, machine=request.machine, encoders=encoders)
    sources = {
        source.name: {
            **{name: value for name, value in asdict(source).items() if name != "value"},
            "value": identity(source.kind, source.value),
            "probe": list(probe(source.kind, source.value)),
        }
        for source in request.settings.sources
    }
    teacher, teacher_probe = None, list[float]()
    if request.teacher is not None:
        kind, _, value = request.teacher.partition(":")
        teacher, teacher_probe = f"{kind}: {identity(kind, value)}", list(probe(kind, value))
    return {
        **asdict(request.settings),
        "sources": sources,
        "data_fingerprint": folder.fingerprint(),
        "split": request.split,
        "teacher": teacher,
        "teaching": {"probe": teacher_probe},
        "judged_split": request.judged_split,
        "keep_identical": request.keep_identical,
        "dtype": request.machine.dtype,
    }


def _mine(
    request: MineRequest,
    folder: BeirFolder,
    *,
    work: Path,
    encoders: "Encoders",
    show: Callable[[str], Any],
) -> dict[str, Any]:
    """Write the negatives and return the report."""
    open_split = functools.partial(
        open_context,
        folder,
        work=work,
        cache=request.cache or work / "cache",
        machine=request.machine,
        encoders=encoders,
        show=show,
    )
    context = open_split(split=request.split)
    teacher = context.teacher(request.teacher) if request.teacher is not None else None
    passages = PassageStore(folder)
    own = frozenset() if request.keep_identical else _own(folder, context, passages)
    report_own_passages(len(own))

    def inputs_of(opened: MiningContext) -> MiningInputs:
        return MiningInputs(
            queries=folder.queries,
            judgements=opened.judgements,
            corpus=opened.corpus,
            passages=passages,
            own=own,
            runs=opened.runs(request.settings.sources),
            teacher=teacher,
        )

    inputs = inputs_of(context)
    removal = None
    if request.judged_split is not None:
        judged = open_split(split=request.judged_split, corpus=context.corpus)
        removal = measure_removal(inputs_of(judged), request.settings).as_json()
    with show("mine") as on_progress:
        statistics = mine(
            inputs,
            request.settings,
            out=request.out,
            work=work / "mined",
            on_progress=on_progress,
        )
    report = mining_report(
        statistics,
        request.settings,
        teacher=None if teacher is None else teacher.name,
        removal=removal,
    )
    return report | {"corpus_sha256": context.corpus_fingerprint}


def _own(folder: BeirFolder, context: MiningContext, passages: PassageStore) -> frozenset[str]:
    """Return the ids of queries that are also passages in the corpus."""
    found = set()
    for query in folder.queries():
        row = int(context.corpus.rows_of([query.id])[0])
        if row >= 0 and is_own_passage(query, passages.at(row)):
            rows, grades = context.judgements.of(query.id) or ((), ())
            grade = max((int(g) for r, g in zip(rows, grades, strict=True) if r == row), default=0)
            check_not_judged(query, passages.at(row), grade)
            found.add(query.id)
    return frozenset(found)


def check_teacher(
    teacher: str | None,
    filtering: FilteringSettings,
    *,
    keep_scores: bool,
    judged_split: str | None,
) -> None:
    """Reject contradictory options, reporting all problems at once.

    Args:
        teacher: The option ``--teacher``.
        keep_scores: The option ``--keep-scores``.
        judged_split: The option ``--judged-split``.

    Raises:
        ConfigError: For example, if bounds have no teacher, or a teacher has no use.
    """
    check_filtering(filtering)
    bounds = "--max-score, --absolute-margin or --relative-margin"
    problems: list[str] = []
    if teacher is None and (filtering.drops or keep_scores):
        problems.append(f"{bounds} and --keep-scores need a --teacher: {TEACHERS}")
    if teacher is not None and not (filtering.drops or keep_scores):
        problems.append(f"--teacher needs a bound ({bounds}) or --keep-scores")
    if filtering.drops and keep_scores:
        problems.append(f"--keep-scores disables dropping; omit it, or omit {bounds}")
    if judged_split is not None and not filtering.drops:
        problems.append(f"--judged-split needs {bounds}, whose effect it measures")
    if problems:
        raise ConfigError("; ".join(problems))
