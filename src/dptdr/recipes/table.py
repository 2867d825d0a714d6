"""The table stage: systems as rows, data sets as columns, in the layout of a paper."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptdr.errors import EvaluationError
from dptdr.evaluation.report import EvaluationReport
from dptdr.evaluation.significance import paired_test
from dptdr.io.atomic import atomic_file, write_json

_KEYS = {
    "title": str,
    "note": str,
    "measures": list,
    "columns": list,
    "rows": list,
    "baseline": str,
    "over": list,
}
PAGE = "table.md"


def check_table(settings: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a table's settings.

    Args:
        settings: ``title``, ``note``, ``measures``, ``columns`` (data sets), ``rows`` (each
            ``system`` and ``report``, in which ``{column}`` and ``{over}`` are replaced), ``over``
            (values, such as seeds, whose mean a cell shows) and ``baseline`` (a system).

    Returns:
        The problems.
    """
    found = [
        f"{key}: expected {kind.__name__}, got {settings[key]!r}"
        for key, kind in _KEYS.items()
        if key in settings and not isinstance(settings[key], kind)
    ]
    found += [
        f"{key}: unknown setting; a table has {', '.join(_KEYS)}"
        for key in settings
        if key not in _KEYS
    ]
    found += [
        f"{key}: is missing" for key in ("measures", "columns", "rows") if key not in settings
    ]
    if found:
        return found
    for number, row in enumerate(settings["rows"], start=1):
        if not isinstance(row, dict) or set(row) != {"system", "report"}:
            found.append(f"rows: row {number}: expected system and report, got {row!r}")
    systems = [row.get("system") for row in settings["rows"] if isinstance(row, dict)]
    if settings.get("baseline") and settings["baseline"] not in systems:
        found.append(f"baseline: no row has the system '{settings['baseline']}'")
    return found


def table_cells(settings: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Return system, column and the texts of the reports of each cell."""
    return [
        (
            row["system"],
            column,
            [
                str(row["report"]).replace("{column}", str(column)).replace("{over}", str(value))
                for value in settings.get("over", [""])
            ],
        )
        for row in settings["rows"]
        for column in settings["columns"]
    ]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One system on one data set: means over the reports, and the test against the baseline."""

    system: str
    column: str
    measures: dict[str, float]
    per_query: dict[str, float]
    queries: int
    reports: int


def make_table(
    settings: Mapping[str, Any], reports: Mapping[tuple[str, str], Sequence[Path]], *, out: Path
) -> dict[str, Any]:
    """Write the table as JSON and as a page beside it.

    Args:
        settings: The stage's settings.
        reports: System and column to the files of ``dptdr evaluate``; a pair may lack.
        out: The JSON file; ``table.md`` is written beside it.

    Returns:
        What the JSON file holds.
    """
    names = settings["measures"]
    cells = {key: _cell(key, paths, names=names) for key, paths in reports.items()}
    value = {
        "title": settings.get("title", ""),
        "note": settings.get("note", ""),
        "measures": names,
        "columns": settings["columns"],
        "systems": [row["system"] for row in settings["rows"]],
        "baseline": settings.get("baseline", ""),
        "cells": [
            {
                "system": cell.system,
                "column": cell.column,
                "measures": cell.measures,
                "queries": cell.queries,
                "seeds": cell.reports,
                "p": _p(cell, cells, baseline=settings.get("baseline", "")),
            }
            for cell in cells.values()
        ],
    }
    write_json(out, value)
    with atomic_file(out.with_name(PAGE)) as handle:
        handle.write(("\n".join(table_lines(value)) + "\n").encode("utf-8"))
    return value


def _cell(key: tuple[str, str], paths: Sequence[Path], *, names: Sequence[str]) -> Cell:
    found = [EvaluationReport.read(path) for path in paths]
    for path, report in zip(paths, found, strict=True):
        if missing := [name for name in names if name not in report.measures]:
            raise EvaluationError(
                f"{path}: expected the measures {', '.join(names)}, the report lacks "
                f"{', '.join(missing)}"
            )
    first = found[0].per_query[names[0]]
    return Cell(
        system=key[0],
        column=key[1],
        measures={name: statistics.fmean(r.measures[name] for r in found) for name in names},
        per_query={q: statistics.fmean(r.per_query[names[0]][q] for r in found) for q in first},
        queries=found[0].queries,
        reports=len(found),
    )


def _p(cell: Cell, cells: Mapping[tuple[str, str], Cell], *, baseline: str) -> float | None:
    other = cells.get((baseline, cell.column))
    if other is None or cell.system == baseline:
        return None
    return paired_test(cell.per_query, other.per_query).p_randomisation


def table_lines(value: Mapping[str, Any]) -> list[str]:
    """Return a table as markdown: a group of measure columns for each data set.

    Args:
        value: What :func:`make_table` returned.

    Returns:
        The lines.
    """
    names, columns = value["measures"], value["columns"]
    cells = {(cell["system"], cell["column"]): cell for cell in value["cells"]}
    head = ["method", *(f"{column} {name}" for column in columns for name in names)]
    lines = [f"# {value['title']}", ""] if value["title"] else []
    lines += [_row(head), _row(["---"] * len(head))]
    for system in value["systems"]:
        shown = [system]
        for column in columns:
            cell = cells.get((system, column))
            shown += [
                "" if cell is None else _number(cell, name, first=name == names[0])
                for name in names
            ]
        lines.append(_row(shown))
    if value["baseline"]:
        lines += [
            "",
            f"In brackets: p of a paired randomisation test of {names[0]} per query against "
            f"{value['baseline']}.",
        ]
    if value["note"]:
        lines += ["", value["note"]]
    return lines


def _number(cell: Mapping[str, Any], name: str, *, first: bool) -> str:
    p = cell["p"]
    shown = f"{cell['measures'][name]:.3f}"
    return f"{shown} ({p:.3f})" if first and p is not None else shown


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
