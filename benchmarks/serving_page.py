"""The results page of the server's benchmarks, generated from each part's records."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import _lib
from _lib import ratio_text as of

Found = dict[str, Any]


def write_page(path: Path) -> None:
    parts = {record["part"]: record for record in _lib.read_records(path)}
    found = {
        n: [*block(parts[n]), "", origin(parts[n])] for n, block in BLOCKS.items() if n in parts
    }
    _lib.fill_page(path.with_suffix(".md"), {n: ["", *lines, ""] for n, lines in found.items()})


def origin(part: Found) -> str:
    said = f"*`{part['command']}`, commit {part['commit']}, {part['machine']}"
    if "rounds" in part:
        said += f", {part['rounds']} rounds"
    load = part.get("load average before and after")
    if load:
        said += f", load average {load[0]} before and {load[1]} after"
    return said + "*"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    return _lib.table(list(head), [[str(cell) for cell in row] for row in rows])


def verdict(good: bool, goal: str, found: str) -> str:  # noqa: FBT001
    return f"Goal: {goal}. {'Reached' if good else '**Missed**'}: {found}."


def peers(part: Found) -> list[str]:
    systems = part["systems"]
    own = systems["dptdr"]["texts per processor second"]
    best = max(s["texts per processor second"] for n, s in systems.items() if n != "dptdr")
    lines = [
        *table(
            ("system", "texts/s", "its time over ours", "wall clock", "difference"),
            (
                (
                    name,
                    f"{s['texts per processor second']:.1f}",
                    of(s["time over dptdr"]),
                    of(s["wall time over dptdr"]),
                    f"{s['largest difference']:.0e}",
                )
                for name, s in sorted(
                    systems.items(), key=lambda item: -item[1]["texts per processor second"]
                )
            ),
        ),
        "",
    ]
    lines += [f"{name} could not run: {why}.\n" for name, why in part["could not run"].items()]
    plain = systems["sentence-transformers"]["time over dptdr"]
    lines.append(
        verdict(
            plain["median"] >= 1.3,
            "at least 1.3 times sentence-transformers' throughput",
            f"{plain['median']:.2f} times",
        )
    )
    lines.append(verdict(own > best, "the fastest of all", f"{own:.1f} against {best:.1f} texts/s"))
    return lines


def prompts(part: Found) -> list[str]:
    found = part["time over no prompt"]
    goals = {"32 rows": 1.05, "128 rows": 1.12}
    return [
        *table(("prompt", "time over no prompt"), ((n, of(r)) for n, r in found.items())),
        "",
        *(
            verdict(
                found[name]["median"] <= most,
                f"{name} within {100 * (most - 1):.0f} %",
                f"{100 * (found[name]['median'] - 1):+.1f} %",
            )
            for name, most in goals.items()
        ),
        verdict(
            part["default over 96 attention rows"]["median"] <= 1.05,
            "the default prompt within 5 % of attention rows alone of the same size",
            of(part["default over 96 attention rows"]),
        ),
    ]


def tasks(part: Found) -> list[str]:
    found, adding = part["time over one task"], part["milliseconds to add a task"]
    check = part["self-check"]
    lines = [
        *table(("tasks", "time over one task"), ((n, of(r)) for n, r in found.items())),
        "",
        f"Self-check at the end: {check['rows']} rows of {check['tasks']} tasks, largest "
        f"difference from each row alone {check['difference']:.0e}. All prompts in memory take "
        f"{part['prompts in memory, MB']} MB.",
        "",
        f"Milliseconds to add a task (copying, checking, proving its effect), of "
        f"{part['tasks added']} tasks:",
        "",
        *table(
            ("clock", "median", "90 % within", "median of the last hundred"),
            ((clock, *times.values()) for clock, times in adding.items()),
        ),
        "",
    ]
    if "100" in found:
        more = 100 * (found["100"]["median"] - 1)
        lines.append(verdict(more <= 5, "100 tasks within 5 % of one", f"{more:+.1f} %"))
    lines.append(
        verdict(
            adding["wall"]["median"] < 50,
            "added in under 50 ms",
            f"{adding['wall']['median']} ms by the wall clock, "
            f"{adding['processor']['median']} ms of processor time (medians)",
        )
    )
    return lines


def lora(part: Found) -> list[str]:
    names = [name for name in part if isinstance(part[name], dict)]
    return table(("ratio of times", ""), ((name, of(part[name])) for name in names))


def memory(part: Found) -> list[str]:
    key = "100 tasks over one model, resident"
    return [
        *table(
            ("process", "resident MB", "private MB", "start, s"),
            (
                (name, p["resident MB"], p["private MB"], p["processor seconds to start"])
                for name, p in part["processes"].items()
            ),
        ),
        "",
        f"100 fully fine-tuned models (computed from one): "
        f"{part['100 fine-tuned models in one process, MB (computed)']} MB in one process, "
        f"{part['100 fine-tuned models on disk, MB (computed)']} MB on disk; 100 tasks take "
        f"{part['100 tasks on disk, MB']} MB on disk.",
        "",
        verdict(
            part[key] < 1.2,
            "100 tasks in less than 1.2 times the memory of one model",
            f"{part[key]:.2f} times resident, {part['100 tasks over one model, private']:.2f} "
            f"private; start {part['100 tasks over one model, start']:.2f} times",
        ),
    ]


def backends(part: Found) -> list[str]:
    return table(
        ("backend", "time over packed", "difference", "to get ready, s"),
        (
            (
                name,
                of(s["time over packed"]),
                f"{s['largest difference from each row alone']:.0e}",
                s["processor seconds to get ready"],
            )
            for name, s in part["systems"].items()
        ),
    )


def joining(part: Found) -> list[str]:
    return table(
        ("prompt rows", "tokens", "texts per task", "merged over joined", "chosen over joined"),
        (
            (
                cell["rows"],
                cell["tokens"],
                cell["texts per task"],
                f"{cell['merged over joined']:.2f}",
                f"{cell['chosen over joined']:.2f}",
            )
            for cell in part["cells"]
        ),
    )


def int8(part: Found) -> list[str]:
    return table(
        ("backend", "nDCG@10", "cost", "least cosine"),
        (
            (
                name,
                f"{value:.4f}",
                f"{part['cost'][name]:+.4f}",
                f"{part['least cosine'][name]:.4f}" if name in part["least cosine"] else "",
            )
            for name, value in part["nDCG@10"].items()
        ),
    )


def soak(part: Found) -> list[str]:
    counts, times = part["counts"], part["milliseconds per request"]
    grown = part["memory of the oldest worker, MB"]
    return [
        *table(
            ("", ""),
            (
                ("vectors, all compared", f"{counts['vectors']:,}"),
                ("wrong vectors", part["wrong vectors"]),
                ("largest difference", f"{part['largest difference']:.0e}"),
                ("errors not asked for", part["errors not asked for"]),
                ("workers killed", counts.get("workers killed", 0)),
                (
                    "connections that broke with a killed worker",
                    counts.get("connections lost with a killed worker", 0),
                ),
                (
                    "self-checks passed, failed",
                    f"{part['self-checks']['passed']:g}, {part['self-checks']['failed']:g}",
                ),
                ("tracebacks in the log", part.get("tracebacks in the log", "not counted")),
                ("milliseconds, median and 95 %", f"{times['median']}, {times['95 %']}"),
                (
                    "memory of the worker that was never killed, every five minutes, MB",
                    ", ".join(map(str, grown["every five minutes"])),
                ),
                (
                    "most in the second third, in the last, MB",
                    f"{grown['most, second third']}, {grown['most, last third']}",
                ),
            ),
        ),
        "",
        "All counts: "
        + "; ".join(f"{name} × {count}" for name, count in counts.items())
        + f". {'All was well.' if part['all well'] else '**Not all was well.**'}",
        *(f"\n- {what}" for what in part["the first of those"]),
    ]


def gpu(part: Found) -> list[str]:
    lines = [
        "## On a GPU",
        "",
        f"{part['card']}, bfloat16; limit: a large matrix product at {part['limit, TFLOP/s']} "
        "TFLOP/s.",
        "",
    ]
    for shape, found in part["shapes"].items():
        lines += [
            f"### {shape}",
            "",
            *table(("system", "time over bare", "texts/s", "share of the limit"), found["rows"]),
            "",
        ]
    return lines


BLOCKS: dict[str, Callable[[Found], list[str]]] = {
    "peers": peers,
    "prompts": prompts,
    "tasks": tasks,
    "lora": lora,
    "memory": memory,
    "backends": backends,
    "joining": joining,
    "int8": int8,
    "soak": soak,
    "gpu": gpu,
}
