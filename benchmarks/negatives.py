r"""Write the page of what mined negatives add: results/negatives.md from results/negatives.jsonl.

``python benchmarks/negatives.py``

The cells were measured once, each with the same queries, start and steps, so that they differ in
the negatives alone. A new one is a file of ``dptdr mine`` and a call of benchmarks/quality.py::

    dptdr mine DATA --source bm25 --source backbone:minilm --out union.jsonl
    python benchmarks/quality.py run --sets NAME --method deep-prompt --set sharing=query-only \
        --set negatives=union.jsonl
"""

import statistics
from typing import Any

import numpy as np

import _lib

RESULTS = _lib.RESULTS / "negatives.jsonl"
SETS = ("tldr", "scifact", "msmarco-dl", "nq-oracle", "medquad")
CONDITIONS = ("none", "bm25", "own", "union", "cleaned", "two-rounds", "refreshed")
MEASURES = ("nDCG@10", "RR@10", "R@100")


def main() -> None:
    cells = _lib.read_records(RESULTS)
    lines = [*_lib.kept_words(RESULTS.with_suffix(".md")), "", *overall_lines(cells)]
    for sharing in ("query-only", "tied"):
        for name in SETS:
            own = [c for c in cells if c["set"] == name and c.get("sharing") == sharing]
            if own:
                systems = [c for c in cells if c["set"] == name and "system" in c]
                lines += ["", *set_lines(name, sharing, own, systems)]
    lines += ["", *_lib.kept_section(RESULTS.with_suffix(".md"), "## Mined")]
    _lib.write_page(RESULTS.with_suffix(".md"), lines)


def set_lines(
    name: str, sharing: str, cells: list[dict[str, Any]], systems: list[dict[str, Any]]
) -> list[str]:
    first = cells[0]
    lines = [
        f"## {name}, {sharing} ({first['queries']} test queries, {first['passages']:,} passages, "
        f"{first['train_queries']:,} train queries)",
        "",
    ]
    rows = []
    for system in systems:
        values = [f"{system['measures'][measure]:.4f}" for measure in MEASURES]
        rows.append([f"({system['system']})", *values, "", ""])
    by_condition = {
        condition: [cell for cell in cells if cell["condition"] == condition]
        for condition in CONDITIONS
    }
    for condition, own in by_condition.items():
        if not own:
            continue
        # Only seeds that both conditions have are compared.
        seeds = {cell["seed"] for cell in own} & {cell["seed"] for cell in by_condition["none"]}
        shown = ""
        if condition != "none" and seeds:
            mine = [cell for cell in own if cell["seed"] in seeds]
            none = [cell for cell in by_condition["none"] if cell["seed"] in seeds]
            shown = _lib.difference(mine, none)
        values = [_lib.spread([cell["measures"][measure] for cell in own]) for measure in MEASURES]
        rows.append([condition, *values, str(len(own)), shown])
    head = ["condition", *MEASURES, "seeds", "difference to none, p"]
    return lines + _lib.table(head, rows)


def overall_lines(cells: list[dict[str, Any]]) -> list[str]:
    """Compare each condition with no mined negatives and with the union, over all sets."""

    def of(name: str, condition: str) -> dict[int, dict[str, Any]]:
        chosen = [c for c in cells if c["set"] == name and c.get("condition") == condition]
        return {c["seed"]: c for c in chosen if c["sharing"] == "query-only"}

    lines = [
        "## Over all sets",
        "",
        "Differences of nDCG@10 (mean over the seeds that both have), their mean over the sets, "
        "each with the same weight, and the randomisation test of that mean over all queries.",
        "",
    ]
    rows = []
    for reference in ("none", "union"):
        for condition in CONDITIONS:
            if condition == reference or (reference == "union" and condition == "none"):
                continue
            means, weighted = [], []
            for name in SETS:
                one, other = of(name, condition), of(name, reference)
                seeds = sorted(one.keys() & other.keys())
                if not seeds:
                    means.append(None)
                    continue
                mine, base = (
                    np.array(_lib.mean_per_query([x[seed] for seed in seeds])) for x in (one, other)
                )
                apart = mine - base
                means.append(float(apart.mean()))
                weighted.append(apart / apart.size)
            known = [mean for mean in means if mean is not None]
            if not known:
                continue
            p = _lib.weighted_p(np.concatenate(weighted) / len(known))
            shown = ["" if mean is None else f"{mean:+.4f}" for mean in means]
            mean = f"{statistics.fmean(known):+.4f} ({len(known)} sets)"
            rows.append([condition, reference, *shown, mean, _lib.p_text(p)])
    return lines + _lib.table(["condition", "against", *SETS, "mean", "p"], rows)


if __name__ == "__main__":
    main()
