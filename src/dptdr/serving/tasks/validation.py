"""Validate bundles before serving: format, backbone, effect and equality."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import safetensors
import torch
from jaxtyping import Float
from torch import Tensor

from dptdr.config.methods import DeepPromptConfig, config_from
from dptdr.errors import BundleError, ConfigError, ServingError, WrongBackbone
from dptdr.model.backbone import Side
from dptdr.model.bundle import TaskManifest, load_task, read_manifest
from dptdr.serving.forward import BatchRow, Forward
from dptdr.serving.tasks.prompt_cache import PromptCache, PromptFile

_NO_EFFECT = 1e-7
_MAX_MEASURES = 200
_MAX_MEASURE = 1e15
_MAX_NAME = 100
_PROBE_TEXT = "side effects"


class Verifier:
    """Validates bundles against one backbone.

    Args:
        forward: The backbone's forward pass.
        hot: Cache that prepares rows for it.
    """

    def __init__(self, forward: Forward, hot: PromptCache) -> None:
        self.forward = forward
        self.backbone = forward.backbone
        self.hot = hot
        self._bare: Float[Tensor, " dim"] | None = None

    def verify(self, bundle: Path) -> TaskManifest:
        """Check a bundle's format, checksum, backbone, shapes, fingerprints and effect.

        Returns:
            The contents of ``task.json``.

        Raises:
            ServingError: If it cannot share batches with other tasks.
            BundleError: If anything is damaged, or the prompt has no effect.
            WrongBackbone: If it belongs to a different backbone.
        """
        manifest = read_manifest(bundle)
        check_described(manifest, bundle)
        config = deep_prompt_config(manifest, bundle)
        self.check_backbone(manifest, bundle)
        with _as_bundle_error(bundle):
            encoder = load_task(bundle, backbone=self.backbone)
            said = (manifest.query_fingerprint, manifest.passage_fingerprint)
            made = (encoder.query_fingerprint, encoder.passage_fingerprint)
            if made != said:
                raise BundleError(
                    f"{bundle}: expected fingerprints {made}, got {said} in task.json; the "
                    "manifest was modified, or written by a different version of dptdr"
                )
            method = encoder.method
            assert method is not None
            file = PromptFile(bundle / manifest.weights_file, key=manifest.weights_sha256)
            (ids,) = self.forward.tokenize([_PROBE_TEXT], side="query", max_tokens=16)
            if self._bare is None:
                self._bare = self.forward.vectors([BatchRow(ids)])[0]
            sides: tuple[Side, ...] = (
                ("query", "passage") if config.sharing == "untied" else ("query",)
            )
            for side in sides:
                name = side if len(sides) == 2 else "shared"
                with torch.inference_mode():
                    alone = method.vectors(self.backbone.pad([ids]), side=side)[0]
                row = BatchRow(ids, self.hot.load(file.rows(name), config, name=name))
                served = self.forward.vectors([row])[0]
                self._compare(served, alone, what=f"{bundle}: prompt '{name}'")
        return manifest

    def _compare(
        self, served: Float[Tensor, " dim"], alone: Float[Tensor, " dim"], *, what: str
    ) -> None:
        """Check that a served vector equals the reference and differs from the bare backbone's."""
        scale = max(1.0, float(alone.norm()))
        if not served.isfinite().all():
            raise BundleError(f"{what} produces NaN or infinity")
        difference = float((served - alone).abs().max())
        if difference > self.forward.tolerance * scale:
            raise BundleError(
                f"{what} gives different vectors when served, by {difference:.1e}; please report "
                "this"
            )
        assert self._bare is not None
        if float((served - self._bare).abs().max()) <= _NO_EFFECT * scale:
            raise BundleError(
                f"{what} has no effect on vectors, so the task is untrained; serve the bare "
                "backbone under its own name instead"
            )

    def check_backbone(self, manifest: TaskManifest, folder: Path) -> None:
        """Reject a bundle of a different backbone.

        Raises:
            WrongBackbone: Names both fingerprints.
        """
        if manifest.backbone_fingerprint != self.backbone.fingerprint:
            raise WrongBackbone(
                f"{folder}: expected a task for backbone '{self.backbone.name}' with fingerprint "
                f"{self.backbone.fingerprint}, got one for '{manifest.backbone}' with "
                f"{manifest.backbone_fingerprint}; serve it on its own backbone, or retrain it on "
                "this one"
            )


def deep_prompt_config(manifest: TaskManifest, folder: Path) -> DeepPromptConfig:
    """Return the settings of a bundle, which must be able to share batches with others.

    Raises:
        ServingError: If it uses a method that changes the encoder itself.
        BundleError: If its settings are not valid for a deep prompt.
    """
    if manifest.method != "deep-prompt":
        raise ServingError(
            f"{folder}: expected a task trained with 'deep-prompt', got '{manifest.method}', which "
            "changes the encoder itself, so it cannot share batches with other tasks; use it "
            "alone (dptdr encode, dptdr search), or retrain it with --method deep-prompt"
        )
    try:
        _, config = config_from(manifest.method, manifest.settings)
    except ConfigError as error:
        raise BundleError(f"{folder / 'task.json'}: {error}") from None
    assert isinstance(config, DeepPromptConfig)
    if config.prompt_layers is not None:
        raise ServingError(
            f"{folder}: the task has prompt rows only in the top {config.prompt_layers} layers, so "
            "it cannot share batches with other tasks; use it alone, or retrain it without "
            "--prompt-layers"
        )
    return config


def check_described(manifest: TaskManifest, folder: Path) -> None:
    """Reject metadata that cannot be shown in a list of tasks.

    Raises:
        BundleError: If measures are not finite numbers, or trained dimensions are not numbers.
    """
    where = folder / "task.json"
    measures = manifest.measures
    if len(measures) > _MAX_MEASURES:
        raise BundleError(
            f"{where}, field 'measures': expected at most {_MAX_MEASURES}, got {len(measures):,}"
        )
    # JSON numbers, excluding booleans and NaN.
    if not all(type(v) in (int, float) and abs(v) < _MAX_MEASURE for v in measures.values()):
        raise BundleError(f"{where}, field 'measures': expected finite numbers")
    if not all(len(name) <= _MAX_NAME and name.isprintable() for name in measures):
        raise BundleError(
            f"{where}, field 'measures': names must be printable and at most {_MAX_NAME} characters"
        )
    lengths = manifest.training.get("matryoshka") or []
    if not isinstance(lengths, list) or any(type(n) is not int or n < 1 for n in lengths):
        raise BundleError(f"{where}, field 'training.matryoshka': expected a list of dimensions")


@contextlib.contextmanager
def _as_bundle_error(bundle: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, safetensors.SafetensorError, RuntimeError, TypeError) as error:
        raise BundleError(f"{bundle}: cannot load this bundle ({error})") from None
