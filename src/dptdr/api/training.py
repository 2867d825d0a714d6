"""Train tasks, and pretrain encoders or prompts."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dptdr.api.inputs import (
    AnyData,
    AnyPath,
    data_folder,
    negatives_of_rows,
    optional_path,
    phases,
    set_threads,
)
from dptdr.config.arguments import check_counts, checked, reject_unused_arguments
from dptdr.config.requests import pretraining_request, training_request
from dptdr.io.beir import BeirFolder
from dptdr.io.outputs import try_outputs
from dptdr.io.progress import TrainingProgress

if TYPE_CHECKING:
    from dptdr.api.task import Task
    from dptdr.model import Backbone
    from dptdr.pretraining.pretrain import PretrainingResult


@checked
def train(
    data: AnyData,
    *,
    out: AnyPath,
    backbone: "AnyPath | Backbone" = "minilm",
    method: str = "deep-prompt",
    negatives: AnyPath | None = None,
    from_task: AnyPath | None = None,
    min_grade: int = 1,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
    tensorboard: AnyPath | None = None,
    track: Literal["wandb", "trackio", "mlflow"] | None = None,
    progress: bool = True,
    **settings: Any,
) -> "Task":
    """Train a task on a frozen backbone and write a bundle of the best checkpoint.

    Args:
        data: A BEIR folder with ``qrels/train.tsv``, or rows (dicts, tuples of query, positive and
            negatives, a ``datasets.Dataset`` or a pandas ``DataFrame``) with columns such as
            ``anchor``/``query``, ``positive``, ``negative``, ``score``; or a mapping from split
            names to rows.
        out: Folder of the bundle; checkpoints and log go to ``OUT.training``.
        backbone: Name or folder of the encoder, or a loaded encoder.
        method: ``deep-prompt``, ``shallow-prompt``, ``lora``, ``bitfit`` or ``full``.
        negatives: Mined negatives or training groups (JSON lines) that replace the train qrels.
        from_task: Start from the prompt of this task, with its lengths, layers, sharing and
            positions.
        min_grade: Minimum grade of a positive.
        overwrite: Delete any output at ``out`` and ``OUT.training`` and start over.
        device: Torch device; ``auto`` picks cuda, mps or cpu.
        threads: CPU threads; torch's default if ``None``.
        tensorboard: Write TensorBoard files to this folder.
        track: Also send the log to this experiment tracker.
        progress: Show progress on standard error.
        **settings: Fields of ``dptdr.config.training.TrainingConfig`` and of the method's
            settings in ``dptdr.config.methods``, such as ``max_steps`` or ``prompt_length``.

    Raises:
        ConfigError: If a setting is unknown, invalid, or does not apply to the method.
    """
    # Validate everything possible before importing torch.
    check_counts(min_grade=min_grade)
    request = training_request(
        method,
        settings,
        from_task=from_task is not None,
        # Rows may contain negatives.
        negatives=negatives is not None or not isinstance(data, Path | str),
    )
    if negatives is not None:
        reject_unused_arguments(
            {"min_grade": min_grade != 1}, "with negatives, whose file lists positives"
        )
    try_outputs(
        Path(out),
        optional_path(tensorboard),
        folders=True,
        inputs=[data, backbone, negatives, from_task],
        suffix=".training",
    )
    with data_folder(data) as folder:
        with phases(progress)("load the encoder"):
            from dptdr.api.task import Task, load_backbone
            from dptdr.model import load_task
            from dptdr.training.tracking import Tracking
            from dptdr.training.train_folder import train_folder

            tracking = Tracking(tensorboard=optional_path(tensorboard), tracker=track)
            set_threads(threads)
            loaded = load_backbone(backbone, device=device)
        watch = TrainingProgress(request.config.dev_measure) if progress else None
        with watch or nullcontext():
            result = train_folder(
                BeirFolder(folder),
                Path(out),
                backbone=loaded,
                request=request,
                negatives=optional_path(negatives) or negatives_of_rows(folder, data),
                from_task=optional_path(from_task),
                min_grade=min_grade,
                overwrite=overwrite,
                progress=watch,
                tracking=tracking,
            )
    return Task(load_task(Path(out), backbone=loaded), path=Path(out), result=result)


@checked
def pretrain(
    data: AnyData,
    *,
    out: AnyPath,
    backbone: "AnyPath | Backbone" = "minilm",
    prompt_only: bool = False,
    from_task: AnyPath | None = None,
    keep_head: bool = False,
    force: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> "PretrainingResult | None":
    """Pretrain an encoder, or only a deep prompt with ``prompt_only``, on unlabelled texts.

    Args:
        data: A BEIR folder, of which only the corpus is read, or rows as for ``train``.
        out: Folder of the backbone or task; checkpoints and log go to ``OUT.pretraining``.
        backbone: Name or folder of the encoder, or a loaded encoder.
        prompt_only: Freeze the backbone and train only a prompt.
        from_task: With ``prompt_only``: start from the prompt of this task, with its lengths.
        keep_head: Also save the heads, to continue pretraining later.
        force: With ``prompt_only``: write the prompt even if it is worse than the backbone on
            held-out pseudo-queries.
        overwrite: Delete any output at ``out`` and ``OUT.pretraining`` and start over.
        device: Torch device; ``auto`` picks cuda, mps or cpu.
        threads: CPU threads; torch's default if ``None``.
        progress: Show progress on standard error.
        **settings: Fields of ``dptdr.config.pretraining.PretrainingConfig``, and with
            ``prompt_only`` of ``dptdr.config.methods.DeepPromptConfig``.

    Returns:
        The result, whose ``out`` can be passed to ``train`` as ``backbone`` or ``from_task``.
        ``None`` in all but the first process of ``torchrun``.

    Raises:
        NoGain: If a prompt trained on the fused ranking is worse than the backbone.
    """
    config, prompt = pretraining_request(
        settings,
        prompt_only=prompt_only,
        from_task=from_task is not None,
        keep_head=keep_head,
        force=force,
    )
    inputs = [data, backbone, from_task]
    try_outputs(Path(out), folders=True, inputs=inputs, suffix=".pretraining")
    with data_folder(data) as folder:
        with phases(progress)("load the encoder"):
            from dptdr.api.task import load_backbone
            from dptdr.model.bundle import load_prompt_rows
            from dptdr.pretraining.pretrain import pretrain as pretrain_folder

            set_threads(threads)
            loaded = load_backbone(backbone, device=device)
        rows = None
        if from_task is not None:
            assert prompt is not None
            prompt, rows = load_prompt_rows(
                Path(from_task), backbone=loaded, config=prompt, given=settings
            )
        watch = TrainingProgress(config.dev_measure) if progress else None
        with watch or nullcontext():
            return pretrain_folder(
                BeirFolder(folder),
                Path(out),
                backbone=loaded,
                config=config,
                prompt=prompt,
                start_rows=rows,
                keep_head=keep_head,
                force=force,
                overwrite=overwrite,
                progress=watch,
                note=_note if progress else None,
            )


def _note(line: str) -> None:
    sys.stderr.write(f"{line}\n")
