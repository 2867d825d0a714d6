"""What must be true of a bundle before a server shows it: format, backbone, effect, equality."""

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
from dptdr.model.encoder import Encoder
from dptdr.serving.engine.forward import Forward, Row
from dptdr.serving.tasks.prompt_cache import PromptCache, PromptFile

_NO_EFFECT = 1e-7
_MOST_MEASURES = 200
_LARGEST_MEASURE = 1e15
_LONGEST_NAME = 100
_PROBE_TEXT = "side effects"


class Verifier:
    """Checks bundles against one backbone.

    Args:
        forward: The backbone's forward pass.
        hot: How rows are laid out for it.
    """

    def __init__(self, forward: Forward, hot: PromptCache) -> None:
        self.forward = forward
        self.backbone = forward.backbone
        self.hot = hot
        self._bare: Float[Tensor, " dim"] | None = None

    def verify(self, bundle: Path) -> TaskManifest:
        """Check format, checksum, backbone, shapes, fingerprints and effect of a bundle.

        Args:
            bundle: The bundle's folder.

        Returns:
            What its ``task.json`` says.

        Raises:
            ServingError: If it cannot share batches with other tasks.
            BundleError: If anything is broken, or the prompt has no effect.
            WrongBackbone: If it belongs to another backbone.
        """
        manifest = read_manifest(bundle)
        check_described(manifest, bundle)
        config = deep_prompt_config(manifest, bundle)
        self.check_backbone(manifest, bundle)
        file = PromptFile(bundle / manifest.weights_file, key=manifest.weights_sha256)
        with _as_bundle_error(bundle):
            names = ("query", "passage") if config.sharing == "untied" else ("shared",)
            for name in names:
                # Before anything is made in the size that the settings claim.
                claimed = (config.prompt_length, config.ffn_length or 0)
                if file.lengths(name) != claimed:
                    raise BundleError(
                        f"{bundle}: task.json says prompt_length and ffn_length {claimed}, but "
                        f"prompt '{name}' has {file.lengths(name)} rows"
                    )
                for tensor in file.rows(name).values():
                    if not torch.isfinite(tensor).all():
                        raise BundleError(f"{bundle}: prompt '{name}' holds NaN or infinity")
            encoder = load_task(bundle, backbone=self.backbone)
        made = (encoder.query_fingerprint, encoder.passage_fingerprint)
        said = (manifest.query_fingerprint, manifest.passage_fingerprint)
        if made != said:
            raise BundleError(
                f"{bundle}: the fingerprints in task.json {said} are not those of its content "
                f"{made}; the manifest was changed, or another version of dptdr wrote it"
            )
        self._verify_effect(encoder, config, file, bundle)
        return manifest

    def _verify_effect(
        self, encoder: Encoder, config: DeepPromptConfig, file: PromptFile, bundle: Path
    ) -> None:
        """Demand that the vectors move, and that serving gives those of the task alone."""
        method = encoder.method
        assert method is not None
        ids = self.forward.tokenize([_PROBE_TEXT], side="query", max_tokens=16)[0]
        tokens = self.backbone.pad([ids])
        names = {"untied": ("query", "passage")}.get(config.sharing, ("shared",))
        for name in names:
            side: Side = "passage" if name == "passage" else "query"
            rows = self.hot.load(file.rows(name), config, name=name)
            if self._bare is None:
                self._bare = self.forward.vectors([Row(ids)])[0]
            served = self.forward.vectors([Row(ids, rows)])[0]
            with torch.inference_mode():
                alone = method.vectors(tokens, side=side)[0]
            scale = max(1.0, float(alone.norm()))
            if not torch.isfinite(served).all():
                raise BundleError(f"{bundle}: prompt '{name}' makes vectors of NaN or infinity")
            if float((served - alone).abs().max()) > self.forward.tolerance * scale:
                raise BundleError(
                    f"{bundle}: prompt '{name}' gives other vectors when served than alone, by "
                    f"{float((served - alone).abs().max()):.1e}; please report this"
                )
            if float((served - self._bare).abs().max()) <= _NO_EFFECT * scale:
                raise BundleError(
                    f"{bundle}: prompt '{name}' has no effect on a vector; the task was not "
                    "trained, serve the bare backbone under its own name instead"
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
                "backbone, or train it anew on this one"
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
            "and search with it alone (dptdr encode, dptdr search), or train it anew with "
            "--method deep-prompt"
        )
    try:
        _, config = config_from(manifest.method, manifest.settings)
    except ConfigError as error:
        raise BundleError(f"{folder / 'task.json'}: {error}") from None
    assert isinstance(config, DeepPromptConfig)
    return config


def check_described(manifest: TaskManifest, folder: Path) -> None:
    """Refuse what could not be shown in a list of tasks.

    Raises:
        BundleError: If measures are not plain finite numbers, or trained lengths no numbers.
    """
    where = folder / "task.json"
    if len(manifest.measures) > _MOST_MEASURES:
        raise BundleError(
            f"{where}, field 'measures': expected at most {_MOST_MEASURES}, got "
            f"{len(manifest.measures):,}"
        )
    for name, value in manifest.measures.items():
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or not abs(value) < _LARGEST_MEASURE:
            raise BundleError(f"{where}, field 'measures': expected finite numbers")
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise BundleError(
                f"{where}, field 'measures': expected names of at most {_LONGEST_NAME} printable "
                "letters"
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
