"""Plans for ``benchmarks/sweep.py``: what is tried on dev, and what is then measured on test.

``python benchmarks/sweep_plans.py tries > tries.json``
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

SETS = (
    *("banking77", "scifact", "tldr", "squad-open", "python-code"),
    *("medquad", "nq-oracle", "msmarco-dl", "python-api"),
)
# Where prompts stood furthest below full fine-tuning, and the smallest training set.
TRIED_ON = ("banking77", "scifact", "tldr", "squad-open", "python-code", "msmarco-dl")
GRIDS: dict[str, tuple[float, ...]] = {
    "full": (3e-5, 1e-4, 2e-4, 4e-4),
    "deep-prompt": (3e-2, 1e-1, 2e-1, 4e-1),
    "lora": (3e-4, 1e-3, 3e-3, 1e-2),
    "bitfit": (3e-4, 1e-3, 3e-3, 1e-2),
    "shallow-prompt": (3e-3, 1e-2, 3e-2, 1e-1),
    "peft-prefix": (1e-2, 3e-2, 1e-1, 3e-1),
}
# Steps that take as long as 150 of full fine-tuning, by results/training.md (.58 to .66).
LONGER = 240


def main() -> None:
    """Print a plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", choices=["tries"])
    parser.parse_args()
    print(json.dumps(list(tries())))


def cell(
    name: str,
    system: str,
    label: str,
    *,
    steps: int = 150,
    settings: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    **recipe: Any,
) -> dict[str, Any]:
    """Return a cell of the first seed."""
    return {
        "set": name,
        "system": system,
        "label": label,
        "seed": 0,
        "steps": steps,
        "recipe": recipe,
        "settings": settings or {},
        "extra": extra or {},
    }


def grid(system: str, *, steps: int = 150, tag: str = "") -> Iterator[dict[str, Any]]:
    """Yield all learning rates of a method on all sets."""
    for rate in GRIDS[system]:
        for name in SETS:
            label = f"{system}{tag} {rate:g}"
            yield cell(name, system, label, steps=steps, learning_rate=rate)


def tries() -> Iterator[dict[str, Any]]:
    """Yield what is tried, the most wanted first."""
    for name in SETS:
        yield cell(name, "bare", "bare")
    yield from grid("full")
    yield from grid("deep-prompt")
    yield from grid("lora")
    yield from grid("deep-prompt", steps=LONGER, tag=f", {LONGER} steps")
    for label, options in variants():
        for name in TRIED_ON:
            system = options.get("system", "deep-prompt")
            own = {key: value for key, value in options.items() if key != "system"}
            yield cell(name, system, label, **own)
    for system in ("bitfit", "shallow-prompt", "peft-prefix"):
        yield from grid(system)
    for rate in (3e-2, 1e-1, 2e-1):
        for name in SETS:
            yield cell(
                name,
                "deep-prompt",
                f"query-only {rate:g}",
                settings={"sharing": "query-only"},
                learning_rate=rate,
            )


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield label and options of each variant; all else is as in the row ``deep-prompt 0.1``."""

    def deep(label: str, *, rate: float = 0.1, **options: Any) -> tuple[str, dict[str, Any]]:
        return f"{label}, {rate:g}", {"learning_rate": rate, **options}

    def other(system: str, label: str, *, rate: float, **options: Any) -> Any:
        return f"{system}, {label}, {rate:g}", {"system": system, "learning_rate": rate, **options}

    for offset in (2.0, 4.0):
        yield deep(f"offset {offset:g}", extra={"offset": offset})
    yield deep("offset 4", rate=0.2, extra={"offset": 4.0})
    yield deep("bias beside 1e-3", extra={"beside": "bitfit", "extra_rate": 1e-3})
    yield deep("bias beside 3e-3", extra={"beside": "bitfit", "extra_rate": 3e-3})
    beside = {"beside": "lora", "beside_settings": {"rank": 4, "alpha": 8}}
    yield deep("lora beside 1e-3", extra={**beside, "extra_rate": 1e-3})
    yield deep("lora beside 3e-3", extra={**beside, "extra_rate": 3e-3})
    yield deep("head beside 1e-2", extra={"head": 16, "extra_rate": 1e-2})
    for rate in (0.03, 0.1, 0.2):
        added = {"attention": "added", "initialisation": "identity"}
        yield deep("added identity", rate=rate, settings=added)
    yield deep("600 steps", steps=600)
    yield deep("600 steps", rate=0.2, steps=600)
    yield other("full", "600 steps", rate=1e-4, steps=600)
    yield other("full", "600 steps", rate=3e-5, steps=600)
    yield other("lora", "600 steps", rate=3e-3, steps=600)
    taught = {"system": "full", "recipe": {"learning_rate": 1e-4}}
    yield deep("taught by full, half", extra={"teacher": taught, "teacher_weight": 0.5})
    yield deep("taught by full, all", extra={"teacher": taught, "teacher_weight": 1.0})
    for length in (1, 4, 32, 48, 128):
        yield deep(f"{length} rows", settings={"prompt_length": length})
    yield deep("48 rows", rate=0.2, settings={"prompt_length": 48})
    yield deep("untied", settings={"sharing": "untied"})
    yield deep("mined negatives", extra={"mined": True})
    yield other("full", "mined negatives", rate=1e-4, extra={"mined": True})
    for temperature in (0.02, 0.03, 0.1):
        yield deep(f"temperature {temperature:g}", temperature=temperature)
        yield other("full", f"temperature {temperature:g}", rate=1e-4, temperature=temperature)
    yield deep("temperature learned", extra={"learned_temperature": True})
    for batch in (64, 128):
        yield deep(f"batch {batch}", batch_size=batch)
        yield other("full", f"batch {batch}", rate=1e-4, batch_size=batch)
    for factor in (0.3, 3.0):
        yield deep(f"values' rate times {factor:g}", value_rate_factor=factor)
    yield deep("lion", rate=0.03, extra={"optimiser": "lion"})
    yield deep("lion", rate=0.01, extra={"optimiser": "lion"})
    yield deep("soap", rate=0.03, extra={"optimiser": "soap"})
    yield deep("soap", rate=0.1, extra={"optimiser": "soap"})
    yield deep("muon", rate=0.03, extra={"optimiser": "muon"})
    yield deep("layers' rates .5 to 2", extra={"layer_rates": [0.5, 2.0]})
    yield deep("layers' rates 2 to .5", extra={"layer_rates": [2.0, 0.5]})
    yield deep("running mean .95", ema=0.95)
    yield deep("dropout .1", settings={"dropout": 0.1})
    yield deep("cosine", schedule="cosine")
    yield deep("constant", schedule="constant")
    yield deep("reparametrised", rate=0.01, settings={"reparametrisation": 128})
    yield deep("shifted positions", settings={"position": "shifted"})
    yield deep("random start", settings={"initialisation": "random"})
    for rank in (1, 4, 16, 32):
        settings = {"rank": rank, "alpha": 2 * rank}
        yield other("lora", f"rank {rank}", rate=3e-3, settings=settings)
    yield deep("start from medquad's", extra={"rows_from": "medquad"})
    yield deep("start from nq-oracle's", extra={"rows_from": "nq-oracle"})
    yield deep("passages of 256 tokens", max_passage_tokens=256)
    yield other("full", "passages of 256 tokens", rate=1e-4, max_passage_tokens=256)


if __name__ == "__main__":
    main()
