"""``dptdr select``: reselect a checkpoint of a finished run by different measures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from dptdr.cli.common import Json, write_result
from dptdr.errors import ConfigError, TrainingError
from dptdr.io.outputs import try_outputs


def command(
    run: Annotated[
        Path, typer.Argument(help="Folder of a training run: OUT.training of `dptdr train`.")
    ],
    data: Annotated[Path, typer.Option(help="Data folder that the run was trained on.")],
    measure: Annotated[
        list[str],
        typer.Option(
            help="Dev measure to compute for each checkpoint, such as R@20; repeatable. The first "
            "one chooses."
        ),
    ],
    backbone: Annotated[
        str, typer.Option(help="The run's encoder: 'minilm', a folder, or a Hugging Face name.")
    ] = "minilm",
    out: Annotated[
        Path | None, typer.Option(help="Write the chosen checkpoint as a task bundle.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Choose this checkpoint, whatever its measures.")
    ] = None,
    json: Json = None,
) -> None:
    """Re-evaluate all checkpoints of a run, and report (and write) the best one."""
    try_outputs(json)
    try_outputs(out, folders=True)
    if out is not None and (out.exists() or out.resolve().is_relative_to(run.resolve())):
        raise ConfigError(f"{out}: expected a new folder outside the run for the bundle")
    measure = list(dict.fromkeys(measure))
    from dptdr.io.beir import BeirFolder
    from dptdr.model import Backbone
    from dptdr.training.checkpoint_selection import measure_again, select_again, write_bundle
    from dptdr.training.checkpoints import RunFolder
    from dptdr.training.preparation import load_dev

    dev = load_dev(BeirFolder(data), RunFolder(run).identity())
    encoder = Backbone.load(backbone)
    history = measure_again(run, dev, backbone=encoder, measures=measure)
    if step is not None and step not in history:
        available = ", ".join(map(str, sorted(history)))
        raise TrainingError(f"{run}: no checkpoint for step {step}; available: {available}")
    best = select_again(run, measure=measure[0]) if step is None else step
    said = _table(history, measures=measure, best=best)
    if out is not None:
        write_bundle(run, out, backbone=encoder, step=best)
        said += f"\n{out}: the checkpoint of step {best}"
    by_step = {str(number): dict(taken) for number, taken in sorted(history.items())}
    write_result(json, {"run": str(run), "best_step": best, "dev": by_step}, said=said)


def _table(
    history: Mapping[int, Mapping[str, float]], *, measures: Sequence[str], best: int
) -> str:
    lines = ["step  " + "  ".join(f"{name:>10}" for name in measures)]
    for step, taken in sorted(history.items()):
        cells = "  ".join(f"{taken[name]:>10.4f}" for name in measures)
        lines.append(f"{step:>4}  {cells}" + ("  chosen" if step == best else ""))
    return "\n".join(lines)
