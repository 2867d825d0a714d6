"""Compare systems on the same queries, with paired tests against the first system."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dptdr.errors import EvaluationError
from dptdr.evaluation.differences import query_differences
from dptdr.evaluation.measures import DEFAULT_MEASURES, parse_measures
from dptdr.evaluation.report import EvaluationReport
from dptdr.evaluation.significance import PairedTest, holm, paired_test

_CHANGES = 5
"""Queries to list with the largest gains, and with the largest losses."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One system against the baseline on one measure.

    Attributes:
        baseline: The baseline's mean.
        value: The system's mean.
        test: Paired test of system minus baseline.
        p_holm: p-value of the randomisation test, adjusted over all systems on this measure.
    """

    system: str
    measure: str
    baseline: float
    value: float
    test: PairedTest
    p_holm: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Systems evaluated on the same queries of a data set.

    Attributes:
        queries: Number of queries.
        measures: Measures in all reports, the usual ones first.
        systems: Names, the baseline first; duplicates are numbered.
        means: System to measure to mean.
        contrasts: Each other system against the baseline, by measure.
        largest_changes: System to the queries with the largest gains and losses on the first
            measure.
    """

    data: str
    split: str
    queries: int
    measures: tuple[str, ...]
    systems: tuple[str, ...]
    means: dict[str, dict[str, float]]
    contrasts: tuple[Contrast, ...]
    largest_changes: dict[str, dict[str, list[dict[str, Any]]]]

    def as_json(self) -> dict[str, Any]:
        """Convert the comparison to plain JSON values."""
        return asdict(self)


def compare_reports(
    reports: Sequence[EvaluationReport],
    *,
    measures: Sequence[str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare systems to the first one with paired tests.

    Args:
        measures: Measures to compare; by default all that the reports share.

    Raises:
        EvaluationError: If there are fewer than two reports, their data, splits, judgements,
            protocols or queries differ, or they share no measure.
    """
    if len(reports) < 2:
        raise EvaluationError(f"expected at least two reports to compare, got {len(reports)}")
    named = _with_distinct_names(reports)
    baseline = named[0]
    for other in named[1:]:
        _check_comparable(baseline, other)
    shared = _shared_measures(named, wanted=measures)
    for other in named[1:]:
        _check_depths(baseline, other, measures=shared)
    contrasts: list[Contrast] = []
    for measure in shared:
        tests = [
            paired_test(other.per_query[measure], baseline.per_query[measure], seed=seed)
            for other in named[1:]
        ]
        adjusted = holm([test.p_randomisation for test in tests])
        for other, test, p_holm in zip(named[1:], tests, adjusted, strict=True):
            contrasts.append(
                Contrast(
                    system=other.system,
                    measure=measure,
                    baseline=baseline.measures[measure],
                    value=other.measures[measure],
                    test=test,
                    p_holm=p_holm,
                )
            )
    return Comparison(
        data=baseline.data,
        split=baseline.split,
        queries=baseline.queries,
        measures=shared,
        systems=tuple(report.system for report in named),
        means={report.system: {m: report.measures[m] for m in shared} for report in named},
        contrasts=tuple(contrasts),
        largest_changes={
            other.system: _largest_changes(other, baseline, measure=shared[0])
            for other in named[1:]
        },
    )


def _with_distinct_names(reports: Sequence[EvaluationReport]) -> list[EvaluationReport]:
    names: set[str] = set()
    named: list[EvaluationReport] = []
    for report in reports:
        name, number = report.system, 1
        while name in names:
            number += 1
            name = f"{report.system} ({number})"
        names.add(name)
        named.append(replace(report, system=name))
    return named


def _check_comparable(first: EvaluationReport, other: EvaluationReport) -> None:
    for what, one, two in (
        ("protocol", first.protocol, other.protocol),
        ("data", first.data, other.data),
        ("split", first.split, other.split),
    ):
        if one != two:
            raise EvaluationError(
                f"expected reports with the same {what}, got '{one}' for '{first.system}' and "
                f"'{two}' for '{other.system}'"
            )
    if first.judgements_fingerprint != other.judgements_fingerprint:
        raise EvaluationError(
            f"'{first.system}' and '{other.system}' were evaluated with different judgements of "
            f"'{first.data}'; re-evaluate both on the same folder"
        )
    kept = [report.details.get("keep_identical") for report in (first, other)]
    if None not in kept and kept[0] != kept[1]:
        raise EvaluationError(
            f"'{first.system}' and '{other.system}' were evaluated once with and once without "
            "--keep-identical; re-evaluate one of them"
        )
    contents = [report.details.get("data_fingerprint") for report in (first, other)]
    if None not in contents and contents[0] != contents[1]:
        raise EvaluationError(
            f"'{first.system}' and '{other.system}' were evaluated on different contents of "
            f"'{first.data}' (passages, queries or qrels); re-evaluate both on the same folder"
        )


def _check_depths(
    first: EvaluationReport, other: EvaluationReport, *, measures: Sequence[str]
) -> None:
    """Refuse rankings of which one ends before a measure that the other reaches."""
    known = [report.details.get("depth") for report in (first, other)]
    depths = [depth for depth in known if isinstance(depth, int)]
    if len(set(depths)) < 2:
        return
    for name, measure in parse_measures(measures).items():
        cutoff = measure.params.get("cutoff")
        if cutoff is None or measure.params.get("judged_only") or int(cutoff) > min(depths):
            raise EvaluationError(
                f"expected rankings of the same depth for {name}, got {depths[0]} for "
                f"'{first.system}' and {depths[1]} for '{other.system}'; re-evaluate with --depth"
            )


def _shared_measures(
    reports: Sequence[EvaluationReport], *, wanted: Sequence[str] | None
) -> tuple[str, ...]:
    first = reports[0]
    shared = [
        measure
        for measure in first.measures
        if all(measure in report.measures and measure in report.per_query for report in reports)
    ]
    if wanted is None:
        if not shared:
            listed = "; ".join(f"{r.system}: {', '.join(r.measures)}" for r in reports)
            raise EvaluationError(f"the reports have no measure in common ({listed})")
        # JSON files sort their keys; put the most common measures first.
        order = {measure: place for place, measure in enumerate(DEFAULT_MEASURES)}
        chosen = sorted(shared, key=lambda measure: order.get(measure, len(order)))
    elif not wanted:
        raise EvaluationError(f"expected measures from {', '.join(shared)}, got none")
    else:
        missing = [measure for measure in wanted if measure not in shared]
        if missing:
            raise EvaluationError(
                f"expected measures from {', '.join(shared)}, got {', '.join(missing)}, missing "
                "from some reports"
            )
        chosen = list(wanted)
    for measure in chosen:
        for report in reports[1:]:
            ours, theirs = first.per_query[measure].keys(), report.per_query[measure].keys()
            if ours != theirs:
                raise EvaluationError(
                    f"'{first.system}' and '{report.system}' have different queries for "
                    f"{measure}: {len(ours - theirs)} only in the first, {len(theirs - ours)} "
                    "only in the second"
                )
    return tuple(chosen)


def _largest_changes(
    other: EvaluationReport, baseline: EvaluationReport, *, measure: str
) -> dict[str, list[dict[str, Any]]]:
    entries = query_differences(other.per_query[measure], baseline.per_query[measure])
    listed = [{"query": entry.query_id, "value": entry.a, "baseline": entry.b} for entry in entries]
    gained = [item for item, entry in zip(listed, entries, strict=True) if entry.difference > 0]
    lost = [item for item, entry in zip(listed, entries, strict=True) if entry.difference < 0]
    return {"gained": gained[:_CHANGES], "lost": lost[::-1][:_CHANGES]}
