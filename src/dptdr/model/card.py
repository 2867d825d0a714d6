"""The readable card of a task bundle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dptdr.io.atomic import atomic_file


def write_card(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a task's ``README.md``: what it is, what it reached, how to use it.

    Args:
        path: The file.
        manifest: The fields of ``task.json``.
    """
    with atomic_file(path) as handle:
        handle.write(_card(manifest).encode("utf-8"))


def _card(manifest: Mapping[str, Any]) -> str:
    lines = [
        f"# {manifest['name']}",
        "",
        f"A retrieval task for the backbone `{Path(str(manifest['backbone'])).name}`, tuned by "
        f"the method `{manifest['method']}`: {manifest['trained_parameters']:,} trained numbers.",
        "",
        "| setting | value |",
        "| --- | --- |",
    ]
    lines += [f"| {key} | {value} |" for key, value in sorted(manifest["settings"].items())]
    lines += [f"| {key} | {value} |" for key, value in sorted(manifest["limits"].items())]
    lines += _section("Measures", manifest["measures"])
    lines += _section("Training", manifest["training"])
    lines += [
        "",
        "## Fingerprints",
        "",
        f"- backbone `{manifest['backbone_fingerprint']}`",
        f"- query vectors `{manifest['query_fingerprint']}`",
        f"- passage vectors `{manifest['passage_fingerprint']}`",
        "",
        "## Use",
        "",
        "```sh",
        f"dptdr encode DATA --task {manifest['name']} --out VECTORS",
        "dptdr index VECTORS --index-type exact --out INDEX",
        f'dptdr search INDEX "a query" --task {manifest["name"]}',
        "```",
        "",
    ]
    return "\n".join(lines)


def _section(title: str, values: Mapping[str, Any]) -> list[str]:
    if not values:
        return []
    lines = ["", f"## {title}", "", "| what | value |", "| --- | --- |"]
    for key, value in sorted(values.items()):
        shown = f"{value:.4f}" if isinstance(value, float) and abs(value) < 10 else value
        lines.append(f"| {key} | {shown} |")
    return lines
