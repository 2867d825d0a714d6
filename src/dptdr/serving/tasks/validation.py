"""Checks of a bundle before it is served: format, backbone, effect, equality."""

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
from dptdr.serving.engine.forward import Forward, Row
from dptdr.serving.tasks.prompt_cache import PromptCache, PromptFile

_NO_EFFECT = 1e-7
_MAX_MEASURES = 200
_MAX_MEASURE = 1e15
_MAX_NAME = 100
_PROBE_TEXT = "side effects"


class Verifier:
    """Checks bundles against one backbone.

    Args:
        forward: The backbone's forward pass.
        hot: Lays out rows for it.
    """

    def __init__(self, forward: Forward, hot: PromptCache) -> None:
        self.forward = forward
        self.backbone = forward.backbone
        self.hot = hot
        self._bare: Float[Tensor, " dim"] | None = None

    def verify(self, bundle: Path) -> TaskManifest:
        """Check format, checksum, backbone, shapes, fingerprints and effect of a bundle.

        Returns:
            What its ``task.json`` says.

        Raises:
            ServingError: If it cannot share batches with other tasks.
            BundleError: If anything is damaged, or the prompt has no effect.
            WrongBackbone: If it belongs to another backbone.
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
                    f"{bundle}: expected fingerprints {made} of its content, got {said} in "
                    "task.json; the manifest was changed, or another version of dptdr wrote it"
                )
            method = encoder.method
            assert method is not None
            file = PromptFile(bundle / manifest.weights_file, key=manifest.weights_sha256)
            (ids,) = self.forward.tokenize([_PROBE_TEXT], side="query", max_tokens=16)
            if self._bare is None:
                self._bare = self.forward.vectors([Row(ids)])[0]
            sides: tuple[Side, ...] = (
                ("query", "passage") if config.sharing == "untied" else ("query",)
            )
            for side in sides:
                name = side if len(sides) == 2 else "shared"
                with torch.inference_mode():
                    alone = method.vectors(self.backbone.pad([ids]), side=side)[0]
                row = Row(ids, self.hot.load(file.rows(name), config, name=name))
                served = self.forward.vectors([row])[0]
                self._compare(served, alone, what=f"{bundle}: prompt '{name}'")
        return manifest

    def _compare(
        self, served: Float[Tensor, " dim"], alone: Float[Tensor, " dim"], *, what: str
    ) -> None:
        """Check that the vector equals the task's own and differs from the bare backbone's."""
        scale = max(1.0, float(alone.norm()))
        if not served.isfinite().all():
            raise BundleError(f"{what} makes vectors of NaN or infinity")
        difference = float((served - alone).abs().max())
        if difference > self.forward.tolerance * scale:
            raise BundleError(
                f"{what} gives other vectors when served than alone, by {difference:.1e}; please "
                "report this"
            )
        assert self._bare is not None
        if float((served - self._bare).abs().max()) <= _NO_EFFECT * scale:
            raise BundleError(
                f"{what} has no effect on a vector; the task was not trained, serve the bare "
                "backbone under its own name instead"
            )

    def check_backbone(self, manifest: TaskManifest, folder: Path) -> None:
        """Refuse a bundle of another backbone.

        Raises:
            WrongBackbone: With both fingerprints.
        """
        if manifest.backbone_fingerprint != self.backbone.fingerprint:
            raise WrongBackbone(
                f"{folder}: the task was trained on backbone '{manifest.backbone}' with "
                f"fingerprint {manifest.backbone_fingerprint}, this server holds "
                f"'{self.backbone.name}' with {self.backbone.fingerprint}; serve it beside its own "
                "backbone, or train it again on this one"
            )


def deep_prompt_config(manifest: TaskManifest, folder: Path) -> DeepPromptConfig:
    """Return the settings of a bundle that can share batches with others.

    Raises:
        ServingError: If it was tuned by a method that changes the encoder itself.
        BundleError: If its settings are not those of a deep prompt.
    """
    if manifest.method != "deep-prompt":
        raise ServingError(
            f"{folder}: the task was tuned by '{manifest.method}', which changes the encoder "
            "itself, so it cannot share a batch with other tasks; expected 'deep-prompt'. Encode "
            "and search with it alone (dptdr encode, dptdr search), or train it again with "
            "--method deep-prompt"
        )
    try:
        _, config = config_from(manifest.method, manifest.settings)
    except ConfigError as error:
        raise BundleError(f"{folder / 'task.json'}: {error}") from None
    assert isinstance(config, DeepPromptConfig)
    if config.prompt_layers is not None:
        raise ServingError(
            f"{folder}: the task has rows in the upper {config.prompt_layers} layers only, so it "
            "cannot share a batch with other tasks; encode with it alone, or train it without "
            "--prompt-layers"
        )
    return config


def check_described(manifest: TaskManifest, folder: Path) -> None:
    """Refuse a card that cannot be shown in a list of tasks.

    Raises:
        BundleError: If measures are not plain finite numbers, or trained lengths no numbers.
    """
    where = folder / "task.json"
    measures = manifest.measures
    if len(measures) > _MAX_MEASURES:
        raise BundleError(
            f"{where}, field 'measures': expected at most {_MAX_MEASURES}, got {len(measures):,}"
        )
    # JSON's numbers, without true, false and NaN.
    if not all(type(v) in (int, float) and abs(v) < _MAX_MEASURE for v in measures.values()):
        raise BundleError(f"{where}, field 'measures': expected finite numbers")
    if not all(len(name) <= _MAX_NAME and name.isprintable() for name in measures):
        raise BundleError(
            f"{where}, field 'measures': expected names of at most {_MAX_NAME} printable letters"
        )
    lengths = manifest.training.get("matryoshka") or []
    if not isinstance(lengths, list) or any(type(n) is not int or n < 1 for n in lengths):
        raise BundleError(f"{where}, field 'training.matryoshka': expected a list of lengths")


@contextlib.contextmanager
def _as_bundle_error(bundle: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, safetensors.SafetensorError, RuntimeError, TypeError) as error:
        raise BundleError(f"{bundle}: {error}") from None
