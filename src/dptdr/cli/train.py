"""``dptdr train``: train a task on a frozen backbone."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dptdr.cli.common import Device, Json, Overwrite, Threads, write_result
from dptdr.cli.options import settings as options_of
from dptdr.config.methods import METHOD_NAMES, DeepPromptConfig, LoraConfig, ShallowPromptConfig
from dptdr.config.training import TrainingConfig
from dptdr.io.outputs import try_outputs

if TYPE_CHECKING:
    from dptdr.api.task import Task

PANELS = {"Training": ("min_grade",)}


@options_of(
    {
        TrainingConfig: "Training",
        DeepPromptConfig: "Deep prompt",
        ShallowPromptConfig: "Shallow prompt",
        LoraConfig: "LoRA",
    },
    shared="Several methods",
    first=("max_steps", "num_epochs", "batch_size", "learning_rate", "prompt_length", "seed"),
)
def command(
    data: Annotated[Path, typer.Argument(help="BEIR folder; trains on qrels/train.tsv.")],
    out: Annotated[
        Path, typer.Option(help="Task bundle to write; checkpoints and log go to OUT.training.")
    ],
    settings: dict[str, Any],
    backbone: Annotated[
        str, typer.Option(help="Frozen encoder: 'minilm', a folder, or a Hugging Face name.")
    ] = "minilm",
    method: Annotated[
        str, typer.Option(metavar=f"<{'|'.join(METHOD_NAMES)}>", help="Tuning method.")
    ] = "deep-prompt",
    negatives: Annotated[
        Path | None,
        typer.Option(help="Mined negatives or training groups (JSON lines), see `dptdr mine`."),
    ] = None,
    from_task: Annotated[
        Path | None,
        typer.Option(
            help="Start from the prompt of this task bundle, with its lengths and sharing."
        ),
    ] = None,
    min_grade: Annotated[int, typer.Option(min=1, help="Minimum grade of a positive.")] = 1,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", hidden=True)] = False,
    device: Device = "auto",
    threads: Threads = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write TensorBoard files to this folder.")
    ] = None,
    track: Annotated[
        Literal["wandb", "trackio", "mlflow"] | None,
        typer.Option(help="Send the log to this tracker as well."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML report of the run here.")
    ] = None,
    json: Json = None,
) -> None:
    """Train a task on DATA and write its bundle, leaving the backbone unchanged.

    Rerun the same command to resume an interrupted run.
    """
    try_outputs(report, json)
    import dptdr

    task = dptdr.train(
        data,
        out=out,
        backbone=backbone,
        method=method,
        negatives=negatives,
        from_task=from_task,
        min_grade=min_grade,
        overwrite=overwrite,
        device=device,
        threads=threads,
        tensorboard=tensorboard,
        track=track,
        **settings,
    )
    if task.result is None:
        return
    write_result(json, _summary(task), said=_message(task))
    if report is not None:
        from dptdr.training.report import write_report

        write_report(task.result.run_folder, report)
        typer.echo(f"report: {report}", err=True)


def _summary(task: "Task") -> dict[str, Any]:
    result = task.result
    assert result is not None
    return {
        "task": str(task.path),
        "manifest": dataclasses.asdict(result.manifest),
        "dev": {str(step): measures for step, measures in result.history.items()},
        "bare_dev": result.bare,
        "best_step": result.best_step,
        "training_seconds": result.seconds,
    }


def _message(task: "Task") -> str:
    result = task.result
    assert result is not None
    measure = str(result.manifest.training["dev_measure"])
    best, bare = result.history[result.best_step][measure], result.bare[measure]
    size = sum(file.stat().st_size for file in task.path.iterdir() if file.is_file())
    lines = [
        f"{task.path}: dev {measure} {best:.4f} (bare backbone {bare:.4f}), step "
        f"{result.best_step}, {result.manifest.trained_parameters:,} trained parameters, "
        f"{size / 1e6:.2f} MB, {result.seconds:.0f} s of training"
    ]
    if (stored := result.manifest.measures.get(f"stored dev {measure}")) is not None:
        lines.append(
            f"stored as {result.manifest.weights_dtype}: dev {measure} {stored:.4f} "
            f"({stored - best:+.4f})"
        )
    if best <= bare:
        lines.append(
            "warning: not better than the bare backbone on dev; give it more steps, more data, or "
            "another learning rate"
        )
    return "\n".join([*lines, f"next: dptdr evaluate DATA --task {task.path}"])
