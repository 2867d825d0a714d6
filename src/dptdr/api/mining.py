"""Mine hard negatives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dptdr.api.inputs import (
    AnyData,
    AnyPath,
    core_count,
    data_folder,
    optional_path,
    phases,
    resolve_device,
)
from dptdr.config.arguments import check_counts, checked, reject_unused_arguments
from dptdr.io.outputs import try_outputs
from dptdr.mining.settings import (
    FilteringSettings,
    MiningSettings,
    OutputFormat,
    PositiveScore,
    check_sources,
    parse_source,
)


@checked
def mine(
    data: AnyData,
    *,
    out: AnyPath,
    sources: Sequence[str] = ("bm25",),
    split: str = "train",
    num_negatives: int = 30,
    range_max: int = 200,
    teacher: str | None = None,
    max_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    positive_score: PositiveScore = "mean",
    keep_scores: bool = False,
    min_grade: int = 1,
    keep_identical: bool = False,
    format: OutputFormat = "dptdr",
    judged_split: str | None = None,
    cache: AnyPath | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    threads: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Mine hard negatives, excluding judged positives and passages with the same text.

    The result is determined by the inputs and the seed.

    Args:
        data: A BEIR folder, or rows as for ``dptdr.train``.
        out: JSON-lines file to write, for ``negatives`` of ``dptdr.train``.
        sources: Each is ``bm25``, ``bm25:LANGUAGE``, ``backbone:NAME``, ``task:FOLDER`` or
            ``run:FILE``, optionally followed by ``,range_min=10``, ``,num_negatives=30``,
            ``,sampling=top|uniform|score``, ``,name=X``.
        split: Split whose judgements define the positives.
        num_negatives: Negatives per query and source.
        range_max: Candidates are taken from ranks 1 to ``range_max``.
        teacher: Scores candidates, for false-negative filtering or distillation:
            ``cross-encoder:NAME``, ``task:FOLDER``, ``backbone:NAME`` or ``file:RUN``.
        max_score: Drop candidates with at least this score.
        absolute_margin: Drop candidates scoring above the positive's score minus this margin.
        relative_margin: Drop candidates scoring above the positive's score times 1 minus this
            margin (0.05: above 95 % of it).
        positive_score: How to combine the scores of several positives.
        keep_scores: Drop nothing, and write the teacher's scores.
        min_grade: Minimum grade of a positive.
        keep_identical: Let a query that is also a passage be its own negative.
        format: ``dptdr`` (ids with provenance) or ``tevatron`` (texts).
        judged_split: Measure precision and recall of the filtering on this split's judgements.
        cache: Folder in which to keep corpus vectors and the BM25 index.
        seed: Seed for sampling.
        device: Torch device; ``auto`` picks cuda, mps or cpu.
        dtype: Dtype of the encoders' weights.
        threads: Threads for BM25; one per core by default.
        overwrite: Delete any output at ``out`` and ``OUT.partial`` and start over.
        progress: Show progress on standard error.

    Returns:
        The report, with counts, provenance and statistics.
    """
    from dptdr.mining.folder import MineRequest, check_teacher, mine_folder
    from dptdr.mining.sources import Machine

    filtering = FilteringSettings(
        max_score=max_score,
        absolute_margin=absolute_margin,
        # Rounded, so that 0.05 equals the 95 % setting of earlier versions.
        relative_margin=None if relative_margin is None else round(relative_margin, 9),
        positive_score=positive_score,
    )
    check_teacher(teacher, filtering, keep_scores=keep_scores, judged_split=judged_split)
    parsed = [
        parse_source(text, range_max=range_max, num_negatives=num_negatives) for text in sources
    ]
    check_sources(parsed)
    check_counts(min_grade=min_grade)
    kinds = {source.kind for source in parsed} | {(teacher or "").partition(":")[0]}
    if not kinds & {"task", "backbone"}:
        without = "without an encoder among sources and teacher"
        reject_unused_arguments({"dtype": dtype != "float32"}, without)
    if kinds <= {"run", "file", ""}:
        reject_unused_arguments({"cache": cache}, "with runs only")
    read = [data, *(source.value for source in parsed), (teacher or "").partition(":")[2]]
    try_outputs(Path(out), inputs=read, suffix=".partial")
    try_outputs(optional_path(cache), folders=True, inputs=read)
    with data_folder(data, split=split) as folder:
        request = MineRequest(
            data=folder,
            out=Path(out),
            split=split,
            settings=MiningSettings(
                sources=tuple(parsed),
                filtering=filtering,
                seed=seed,
                min_grade=min_grade,
                output=format,
            ),
            keep_identical=keep_identical,
            teacher=teacher,
            judged_split=judged_split,
            cache=optional_path(cache),
            machine=Machine(resolve_device(device), dtype, threads or core_count()),
        )
        return mine_folder(request, show=phases(progress), overwrite=overwrite)
