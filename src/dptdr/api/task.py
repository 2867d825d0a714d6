"""Trained tasks and bare backbones as encoders."""

from pathlib import Path
from typing import Any, TypeAlias

from dptdr.api.inputs import AnyPath, resolve_device
from dptdr.config.arguments import check_counts, checked, reject_unused_arguments
from dptdr.errors import ConfigError
from dptdr.model import Backbone, Encoder, TaskManifest, load_encoder, load_task, read_manifest
from dptdr.model.hub import push_task, task_folder
from dptdr.training.train import TrainingResult

__all__ = ["AnyEncoder", "Encoder", "Task", "encoder_of", "load", "load_backbone", "loaded"]

AnyEncoder: TypeAlias = Encoder | Path | str
"""A loaded encoder, the folder or Hub name of a task, or the name or folder of a backbone."""


class Task(Encoder):
    """An encoder with a trained task; use ``encode_queries`` and ``encode_passages``.

    Args:
        encoder: The task's encoder.
        path: The bundle's folder.
        result: Training result; ``None`` for a loaded task.
    """

    def __init__(
        self, encoder: Encoder, *, path: Path, result: TrainingResult | None = None
    ) -> None:
        super().__init__(
            encoder.backbone, method=encoder.method, limits=encoder.limits, name=encoder.name
        )
        self.path = path
        self.result = result

    @property
    def manifest(self) -> TaskManifest:
        """The contents of ``task.json``: method, settings, fingerprints and dev measures."""
        return read_manifest(self.path)

    def to_sentence_transformer(self, *others: Encoder) -> Any:
        """Convert this task to a ``SentenceTransformer`` that shares its weights.

        Args:
            others: Additional tasks with the same backbone, for ``encode(..., prompt_task=[...])``.

        Raises:
            ConfigError: If sentence-transformers is missing, backbones differ, or task names
                repeat.
        """
        try:
            from dptdr.model.sentence_transformer import to_sentence_transformer
        except ImportError as error:
            raise ConfigError(
                f"this needs sentence-transformers 6 ({error}); install "
                "'dptdr[sentence-transformers]'"
            ) from None
        return to_sentence_transformer(self, *others)

    def push_to_hub(
        self,
        repository: str,
        *,
        base_model: str | None = None,
        license_name: str = "unknown",
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Upload the bundle to the Hugging Face Hub, for ``dptdr.load("org/name")``.

        Args:
            repository: ``org/name``; created if it does not exist.
            base_model: The backbone's name on the Hub; required if the backbone is a local folder.
            license_name: License for the model card, in Hub notation (``apache-2.0``).
            private: Make a new repository private.
            revision: Branch to write to; the main branch by default.
            token: Access token; the stored token by default.

        Returns:
            The URL of the commit.
        """
        return push_task(
            self.path,
            repository,
            base_model=base_model,
            license_name=license_name,
            private=private,
            revision=revision,
            token=token,
        )


@checked
def load(
    name: AnyPath,
    *,
    backbone: AnyPath | Backbone | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> Encoder:
    """Load a task, or a bare backbone.

    Args:
        name: Folder of a task or its name on the Hub (``org/name``), or name or folder of a
            backbone (``minilm`` needs no download).
        backbone: The task's backbone, or its location; by default as recorded in the task.
        device: Torch device; ``auto`` picks the first available of cuda, mps and cpu.
        dtype: Dtype of the backbone's weights.

    Returns:
            The encoder; a ``Task`` if ``name`` is one.
    """
    folder = task_folder(name)
    if folder is None and backbone is None:
        return encoder_of(backbone=str(name), device=device, dtype=dtype)
    return encoder_of(task=folder or name, backbone=backbone, device=device, dtype=dtype)


def encoder_of(
    *,
    task: AnyPath | None = None,
    backbone: AnyPath | Backbone | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> Encoder:
    """Load a task, a bare backbone, or a task on a given backbone."""
    if task is None and backbone is None:
        raise ConfigError(
            "expected --task TASK or --backbone BACKBONE, got neither; --backbone minilm works "
            "without training"
        )
    backbone = str(backbone) if isinstance(backbone, Path) else backbone
    if isinstance(backbone, Backbone):
        _refuse_reload(backbone, device=device, dtype=dtype)
    if task is None:
        if isinstance(backbone, Backbone):
            return Encoder(backbone)
        return load_encoder(backbone=backbone, device=resolve_device(device), dtype=dtype)
    folder = task_folder(task) or Path(task)
    if isinstance(backbone, Backbone):
        return Task(load_task(folder, backbone=backbone), path=folder)
    encoder = load_encoder(
        task=folder, backbone=backbone, device=resolve_device(device), dtype=dtype
    )
    return Task(encoder, path=folder)


_LOADED = "on a loaded encoder; give it to dptdr.load"


def _refuse_reload(loaded: Backbone, *, device: str, dtype: str = "float32") -> None:
    """Reject options that have no effect on a loaded encoder."""
    own = str(loaded.device)
    idle = {"dtype": dtype != "float32", "device": device not in ("auto", own, own.split(":")[0])}
    reject_unused_arguments(idle, _LOADED)


def load_backbone(given: AnyPath | Backbone, *, device: str) -> Backbone:
    """Return a backbone, loading it if given by name."""
    if isinstance(given, Backbone):
        _refuse_reload(given, device=device)
        return given
    return Backbone.load(str(given), device=resolve_device(device))


def loaded(
    given: AnyEncoder,
    *,
    backbone: str | None = None,
    device: str,
    dtype: str = "float32",
    batch_size: int | None = None,
    fast: bool = False,
) -> Encoder:
    """Return an encoder, loading it if given by name.

    Args:
        given: The encoder.
        backbone: Location of a task's backbone.
        fast: Optimise a loaded encoder for inference; it can then no longer be trained.
    """
    check_counts(batch_size=batch_size)
    if not isinstance(given, Path | str):
        reject_unused_arguments({"backbone": backbone is not None}, _LOADED)
        if (device, dtype) != ("auto", "float32"):
            _refuse_reload(given.backbone, device=device, dtype=dtype)
        encoder = given
    else:
        encoder = load(given, backbone=backbone, device=device, dtype=dtype)
        if fast:
            encoder.eval()
    if batch_size is not None:
        encoder.max_texts = batch_size
    return encoder
