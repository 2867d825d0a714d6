"""Write a task's model card and its sentence-transformers configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dptdr import __version__
from dptdr.io.atomic import atomic_file, write_json

_HUB_NAMES = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}
_MODULE = "dptdr.model.sentence_transformer.TaskModule"
_TAGS = ["dptdr", "sentence-transformers", "feature-extraction", "dense-retrieval", "prompt-tuning"]


def write_modules(folder: Path, *, query_prefix: str, passage_prefix: str) -> None:
    """Write the files that let sentence-transformers load a task folder."""
    write_json(
        folder / "modules.json",
        [{"idx": 0, "name": "0", "path": "", "type": _MODULE}],
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "requirements": {"dptdr": f">={__version__}", "sentence-transformers": ">=6"},
            "prompts": {"query": query_prefix, "document": passage_prefix},
            "default_prompt_name": None,
            "similarity_fn_name": "dot",
        },
    )


def write_card(path: Path, manifest: Mapping[str, Any], *, license_name: str = "unknown") -> None:
    """Write a task's model card (``README.md``).

    Args:
        manifest: The fields of ``task.json``.
    """
    head = _head(manifest, license_name=license_name)
    with atomic_file(path) as handle:
        handle.write(f"---\n{head}\n---\n\n{_card(manifest)}".encode())


def _head(manifest: Mapping[str, Any], *, license_name: str) -> str:
    """Build the card's YAML metadata for the Hub."""
    from huggingface_hub import EvalResult, ModelCardData

    backbone = str(manifest["backbone"])
    base = _HUB_NAMES.get(backbone, backbone)
    data = Path(str(manifest["training"].get("data", "dev"))).name
    results = [
        EvalResult(
            task_type="text-retrieval",
            dataset_type=data,
            dataset_name=data,
            metric_type=name.removeprefix("dev "),
            metric_value=value,
        )
        for name, value in sorted(manifest["measures"].items())
        if isinstance(value, float) and not name.startswith(("bare ", "stored "))
    ]
    card = ModelCardData(
        library_name="dptdr",
        license=license_name,
        pipeline_tag="feature-extraction",
        # A local path is useless on other machines.
        base_model=None if Path(base).is_absolute() else base,
        tags=_TAGS,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=str(manifest["name"]),
        eval_results=results or None,
    )
    return card.to_yaml()


def _card(manifest: Mapping[str, Any]) -> str:
    lines = [
        f"# {manifest['name']}",
        "",
        f"A retrieval task for the backbone `{Path(str(manifest['backbone'])).name}`, tuned with "
        f"`{manifest['method']}`: {manifest['trained_parameters']:,} trained parameters.",
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
