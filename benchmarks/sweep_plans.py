"""Plans for ``benchmarks/sweep.py``: what is tried on dev, and what is then measured on test.

``python benchmarks/sweep_plans.py tries > tries.json``
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
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


VARIANTS_ON = ("banking77", "scifact", "tldr", "squad-open", "python-code")
SEEDS = (0, 1, 2)


def main() -> None:
    """Print a plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", choices=["tries", "more", "final"])
    parser.add_argument("--tried", type=Path, nargs="*", default=[], help="results so far")
    arguments = parser.parse_args()
    found = [
        json.loads(line)
        for path in arguments.tried
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    plans = {"tries": tries, "more": more, "final": lambda: final(found)}
    print(json.dumps(list(plans[arguments.plan]())))


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
    yield deep("lion", rate=0.03, extra={"optimiser": "lion"})
    yield deep("lion", rate=0.01, extra={"optimiser": "lion"})
    yield deep("soap", rate=0.03, extra={"optimiser": "soap"})
    yield deep("soap", rate=0.1, extra={"optimiser": "soap"})
    yield deep("muon", rate=0.03, extra={"optimiser": "muon"})
    yield deep("layers' rates .5 to 2", extra={"layer_rates": [0.5, 2.0]})
    yield deep("layers' rates 2 to .5", extra={"layer_rates": [2.0, 0.5]})
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


def more() -> Iterator[dict[str, Any]]:
    """Yield variants that the first round had no time for, on sets with enough dev queries."""
    for label, options in recipes().items():
        for name in VARIANTS_ON:
            yield cell(name, "deep-prompt", label, **options)


def recipes() -> dict[str, dict[str, Any]]:
    """Return recipes that may become the default, by label."""
    taught = {"system": "full", "recipe": {"learning_rate": 1e-4}}
    found: dict[str, dict[str, Any]] = {
        "48 rows": {"settings": {"prompt_length": 48}},
        "untied": {"settings": {"sharing": "untied"}},
        "temperature 0.03": {"temperature": 0.03},
        "48 rows, offset 2": {"settings": {"prompt_length": 48}, "extra": {"offset": 2.0}},
        "48 rows, 0.2": {"settings": {"prompt_length": 48}, "learning_rate": 0.2},
        "second moment .95": {"extra": {"betas": [0.9, 0.95]}},
        "soap, 0.03": {"extra": {"optimiser": "soap"}, "learning_rate": 0.03},
        "lion, 0.01": {"extra": {"optimiser": "lion"}, "learning_rate": 0.01},
        "layers' rates 2 to .5": {"extra": {"layer_rates": [2.0, 0.5]}},
        "layers' rates .5 to 2": {"extra": {"layer_rates": [0.5, 2.0]}},
        "temperature 0.02": {"temperature": 0.02},
        "start from nq-oracle's": {"extra": {"rows_from": "nq-oracle"}},
        "taught by full": {"extra": {"teacher": taught, "teacher_weight": 0.5}},
        "random start": {"settings": {"initialisation": "random"}},
    }
    return {label: {"learning_rate": 0.1, **options} for label, options in found.items()}


def best_dev(record: dict[str, Any]) -> float:
    """Return the dev measure of the checkpoint that would be chosen."""
    return max(value for step, value in record["dev"].items() if step != "0")


def chosen_rate(found: list[dict[str, Any]], name: str, system: str, *, steps: int) -> float:
    """Return the rate of a method's grid that is best on a set's dev queries."""
    rows = [
        record
        for record in found
        if record["set"] == name
        and record["system"] == system
        and record["steps"] == steps
        and not record["settings"]
        and not record["extra"]
        and set(record["recipe"]) == {"learning_rate"}
        and "error" not in record
    ]
    rate: float = max(rows, key=best_dev)["recipe"]["learning_rate"]
    return rate


def winner(found: list[dict[str, Any]]) -> str:
    """Return the recipe with the highest mean on dev; "" if none beats plain prompts."""

    def mean(label: str) -> float:
        rows = [r for r in found if r["label"] == label and r["set"] in VARIANTS_ON]
        rows = [r for r in rows if "error" not in r]
        return sum(map(best_dev, rows)) / len(rows) if len(rows) == len(VARIANTS_ON) else -1.0

    # A teacher costs its own training: no equal time.
    labels = [label for label in recipes() if not label.startswith(("taught", "start from"))]
    best = max(labels, key=mean)
    return best if mean(best) > mean("deep-prompt 0.1") else ""


def final(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what is measured on all test queries over all passages."""

    def tested(made: dict[str, Any], *, seed: int = 0, elsewhere: bool = False) -> dict[str, Any]:
        others = [name for name in SETS if name != made["set"]] if elsewhere and seed == 0 else []
        return {**made, "seed": seed, "measure": "test", "others": others}

    for name in SETS:
        yield tested(cell(name, "bare", "bare"), elsewhere=True)
    for seed in SEEDS:
        for system, steps in (("full", 150), ("deep-prompt", LONGER), ("lora", 150)):
            for name in SETS:
                rate = chosen_rate(found, name, system, steps=steps)
                made = cell(name, system, f"{system}, {steps}", steps=steps, learning_rate=rate)
                yield tested(made, seed=seed, elsewhere=True)
        for name in SETS:
            rate = chosen_rate(found, name, "deep-prompt", steps=150)
            made = cell(name, "deep-prompt", "deep-prompt, 150", learning_rate=rate)
            yield tested(made, seed=seed)
    label = winner(found)
    if label:
        for seed in SEEDS:
            for steps in (LONGER, 150):
                for name in SETS:
                    made = cell(
                        name, "deep-prompt", f"{label}, {steps}", steps=steps, **recipes()[label]
                    )
                    yield tested(made, seed=seed)
    for system in ("deep-prompt", "full"):
        for name in SETS:
            rate = chosen_rate(found, name, system, steps=150)
            label = f"{system}, mined negatives"
            yield tested(cell(name, system, label, learning_rate=rate, extra={"mined": True}))
    for length in (1, 4, 64, 128):
        for name in VARIANTS_ON:
            settings = {"prompt_length": length}
            made = cell(name, "deep-prompt", f"{length} rows", settings=settings, learning_rate=0.1)
            yield tested(made)
    for rank in (1, 4, 32):
        for name in VARIANTS_ON:
            settings = {"rank": rank, "alpha": 2 * rank}
            made = cell(name, "lora", f"rank {rank}", settings=settings, learning_rate=3e-3)
            yield tested(made)
    for system in ("bitfit", "shallow-prompt", "peft-prefix"):
        for rate in GRIDS[system][1:3]:
            for name in SETS:
                yield tested(cell(name, system, f"{system} {rate:g}", learning_rate=rate))
    for name in SETS:
        settings = {"sharing": "query-only"}
        yield tested(
            cell(name, "deep-prompt", "query-only 0.1", settings=settings, learning_rate=0.1)
        )


if __name__ == "__main__":
    main()
