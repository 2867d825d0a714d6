"""Task bundles: folders with trained weights, settings, fingerprints and measures."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import orjson
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import dptdr
from dptdr.config.methods import (
    DeepPromptConfig,
    LoraConfig,
    MethodConfig,
    MethodName,
    StorageDtype,
    config_from,
    settings_of,
)
from dptdr.errors import BundleError, ConfigError, DataError, WrongBackbone
from dptdr.io.atomic import atomic_folder, read_json, recover_folder, sha256_file, write_json
from dptdr.io.lines import MAX_COUNT, describe
from dptdr.io.outputs import refuse_extra, refuse_foreign
from dptdr.io.probe import is_probe, same_probe
from dptdr.model.backbone import MINILM, Backbone, resolve
from dptdr.model.card import write_card, write_modules
from dptdr.model.encoder import Encoder, Limits
from dptdr.model.methods import Method, MethodFactory

FORMAT_VERSION = 2
"""Version 1 had no feed-forward rows."""

READABLE_VERSIONS = (1, FORMAT_VERSION)
TASK_FILE = "task.json"


@dataclass(frozen=True, kw_only=True)
class TaskManifest:
    """The contents of ``task.json``.

    Args:
        limits: Maximum text lengths in tokens.
        training: Training data, steps, learning rate, seed and so on.
        measures: Dev measures of the selected checkpoint and of the bare backbone.
        weights_dtype: Storage dtype of the trained tensors; they are loaded as float32.
    """

    name: str
    method: MethodName
    settings: dict[str, Any]
    backbone: str
    backbone_fingerprint: str
    limits: dict[str, int]
    weights_file: str
    weights_sha256: str
    trained_parameters: int
    query_fingerprint: str
    passage_fingerprint: str
    training: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)
    backbone_probe: list[Any] = field(default_factory=list)
    dptdr_version: str = dptdr.__version__
    format_version: int = FORMAT_VERSION
    weights_dtype: str = "float32"


_WRITTEN = (TASK_FILE, "*.safetensors", "README.md", "modules.json", "config_*.json")


def save_task(
    path: Path,
    encoder: Encoder,
    *,
    name: str | None = None,
    training: Mapping[str, Any] | None = None,
    measures: Mapping[str, Any] | None = None,
    dtype: StorageDtype = "float32",
) -> TaskManifest:
    """Write a task bundle; an existing bundle at ``path`` remains until the new one is complete.

    Args:
        name: Task name; the folder's name by default.
        dtype: Storage dtype; the encoder's own weights are rounded to it.

    Returns:
        The contents of ``task.json``.

    Raises:
        ValueError: If the encoder is a bare backbone.
        BundleError: If a weight is out of range for the dtype.
        OutputError: If writing fails, or ``path`` has unrelated files; it is then unchanged.
    """
    if encoder.method is None:
        raise ValueError("expected a tuned task to save, got a bare backbone")
    path, method = Path(path), encoder.method
    refuse_foreign(path, mark=TASK_FILE)
    refuse_extra(path, known=_WRITTEN)
    state = round_weights(method, dtype)
    weights_file = "prompt.safetensors" if "prompt" in method.name else "weights.safetensors"
    with atomic_folder(path) as temporary:
        safetensors.torch.save_file(state, temporary / weights_file)
        manifest = TaskManifest(
            name=name or path.name,
            method=method.name,
            settings=settings_of(method.config),
            backbone=_lasting_name(method.backbone.name),
            backbone_fingerprint=encoder.backbone_fingerprint,
            backbone_probe=list(encoder.backbone_probe),
            limits=asdict(encoder.limits),
            weights_file=weights_file,
            weights_sha256=sha256_file(temporary / weights_file),
            trained_parameters=sum(tensor.numel() for tensor in state.values()),
            query_fingerprint=encoder.query_fingerprint,
            passage_fingerprint=encoder.passage_fingerprint,
            training=dict(training or {}),
            measures=dict(measures or {}),
            weights_dtype=dtype,
        )
        write_json(temporary / TASK_FILE, asdict(manifest))
        write_card(temporary / "README.md", asdict(manifest))
        pooling = method.backbone.pooling
        write_modules(
            temporary, query_prefix=pooling.query_prefix, passage_prefix=pooling.passage_prefix
        )
    return manifest


def round_weights(method: Method, dtype: StorageDtype) -> dict[str, Tensor]:
    """Round a method's weights to a dtype in place, and return them.

    Raises:
        BundleError: If a weight is out of range for the dtype.
    """
    if dtype == "float32":
        return method.state()
    kind: torch.dtype = getattr(torch, dtype)
    state = {name: tensor.to(kind) for name, tensor in method.state().items()}
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise BundleError(
            f"storage_dtype: a weight is out of range for {dtype}; use bfloat16 or float32"
        )
    method.load({name: tensor.float() for name, tensor in state.items()})
    return state


def _lasting_name(name: str) -> str:
    """Make a backbone name independent of the working directory."""
    folder = None if name == MINILM else resolve(name)
    return name if folder is None else str(folder.resolve())


def read_manifest(path: Path) -> TaskManifest:
    """Read ``task.json``, checking its format and the checksum of the weights.

    Raises:
        BundleError: If the bundle is missing or malformed, its format is unknown, or the weights
            file does not match its checksum.
    """
    path = Path(path)
    recover_folder(path)
    if not (path / TASK_FILE).exists():
        raise BundleError(f"{path}: expected a task bundle with a {TASK_FILE}, found none")
    _check_inside(path, TASK_FILE)
    try:
        values = read_json(path / TASK_FILE)
    except DataError as error:
        raise BundleError(f"{error}; the bundle is damaged, retrain or copy it again") from None
    if not isinstance(values, dict):
        raise BundleError(f"{path / TASK_FILE}: expected a JSON object")
    version = values.get("format_version")
    if version not in READABLE_VERSIONS:
        raise BundleError(
            f"{path / TASK_FILE}, field 'format_version': expected at most {FORMAT_VERSION}, got "
            f"{describe(version)}; upgrade dptdr (this is {dptdr.__version__})"
        )
    settings = values.get("settings")
    if version == 1 and values.get("method") == "deep-prompt" and isinstance(settings, dict):
        values["settings"] = {**settings, "ffn_length": 0}
    manifest = _manifest_from(values, path=path / TASK_FILE)
    weights = path / manifest.weights_file
    if not weights.is_file():
        raise BundleError(f"{weights}: the bundle's weights file is missing; copy the bundle again")
    _check_inside(path, manifest.weights_file)
    found = sha256_file(weights)
    if found != manifest.weights_sha256:
        raise BundleError(
            f"{weights}: expected SHA-256 {manifest.weights_sha256}, got {found}; the file is "
            "damaged or was replaced, copy the bundle again"
        )
    return manifest


def _check_inside(folder: Path, name: str) -> None:
    """Reject links out of the bundle, except to the Hugging Face cache's own blobs."""
    real, own = (folder / name).resolve(), folder.resolve()
    if real.parent not in (own, own.parent.parent / "blobs"):
        raise BundleError(f"{folder / name}: expected a file, got a link to {real}; copy the file")


def _manifest_from(values: dict[str, Any], *, path: Path) -> TaskManifest:
    """Check the names and types of all fields, reporting every problem at once."""
    hints = get_type_hints(TaskManifest)
    problems = [
        f"field '{name}' is missing"
        for name in sorted(set(hints) - {"weights_dtype", "backbone_probe"} - set(values))
    ]
    problems += [f"unknown field '{name}'" for name in sorted(set(values) - set(hints))]
    problems += [
        f"field '{name}': expected {_wanted(hint)}, got {describe(values[name])}"
        for name, hint in hints.items()
        if name in values and not _fits(values[name], hint)
    ]
    limits = values.get("limits")
    if isinstance(limits, dict) and (
        set(limits) != set(Limits.__dataclass_fields__)
        or not all(_is_count(limit) and limit > 0 for limit in limits.values())
    ):
        problems.append(
            f"field 'limits': expected positive integers {sorted(Limits.__dataclass_fields__)}"
        )
    weights = values.get("weights_file")
    if isinstance(weights, str) and (Path(weights).name != weights or len(weights) > 255):
        problems.append(
            f"field 'weights_file': expected a file name inside the bundle, got '{weights[:100]}'"
        )
    if not is_probe(values.get("backbone_probe", [])):
        problems.append("field 'backbone_probe': expected a list of finite numbers")
    for name, value in values.items():
        try:
            orjson.dumps(value)
        except TypeError as error:  # deep nesting, lone surrogates, more than 64 bits
            problems.append(f"field {name!r}: expected plain JSON, {error}")
    if problems:
        raise BundleError(f"{path}: " + "; ".join(problems))
    return TaskManifest(**values)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_COUNT


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if hint is int:
        return _is_count(value)
    return isinstance(value, get_origin(hint) or hint)


def _wanted(hint: Any) -> str:
    if hint is int:
        return f"an integer from 0 to {MAX_COUNT - 1:,}"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    return str((get_origin(hint) or hint).__name__)


def read_state(path: Path, manifest: TaskManifest) -> dict[str, Tensor]:
    """Load a bundle's trained tensors by name, as float32.

    Raises:
        BundleError: If the file is not in safetensors format, or has non-finite values.
    """
    file = path / manifest.weights_file
    try:
        stored: dict[str, Tensor] = safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise BundleError(f"{file}: expected a safetensors file: {error}") from None
    state = {name: tensor.float() for name, tensor in stored.items()}
    for name, tensor in stored.items():
        if not tensor.is_floating_point() or not bool(state[name].isfinite().all()):
            raise BundleError(f"{file}, '{name}': expected finite numbers; retrain the task")
    return state


def load_task(path: Path, *, backbone: Backbone | None = None, device: str = "cpu") -> Encoder:
    """Load a task bundle.

    Args:
        backbone: The backbone to use; by default the one named in the bundle is loaded.
        device: Device for a backbone loaded by default.

    Raises:
        BundleError: If the bundle is missing or malformed.
        WrongBackbone: If the task was trained on another backbone; the message has both
            fingerprints.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if backbone is None:
        backbone = Backbone.load(manifest.backbone, device=device)
    _check_backbone(path, manifest, backbone)
    state = read_state(path, manifest)
    try:
        method = _build_method(manifest, backbone, state)
        method.load(state)
    except (BundleError, ConfigError, ValueError, ArithmeticError) as error:
        raise BundleError(f"{path}: {error}") from None
    method.module.eval()
    return Encoder(backbone, method=method, limits=Limits(**manifest.limits), name=manifest.name)


_OF_START = ("prompt_length", "ffn_length", "prompt_layers", "sharing", "position")
"""Settings that a task shares with the prompt that it starts from."""


def load_prompt_rows(
    path: Path, *, backbone: Backbone, config: DeepPromptConfig, given: Collection[str]
) -> tuple[DeepPromptConfig, dict[str, Tensor]]:
    """Load a deep-prompt task's rows, to initialise another task on the same backbone.

    Args:
        config: Settings of the other task, whose prompt must be used in the same way. A tied prompt
            can start any task.
        given: Names of the settings that were asked for; lengths, layers, sharing and positions
            that were not are those of the saved prompt.

    Returns:
        The settings of the other task, and the saved tensors by name: attention rows,
        ``[layers, 2, heads, prompt, head_dim]``, under the prompt's name, and feed-forward rows
        beside them.

    Raises:
        BundleError: If the bundle is malformed or is not a deep prompt.
        ConfigError: If lengths, layers, positions or sharing differ from what was asked for.
        WrongBackbone: If the task was trained on another backbone.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest.method != "deep-prompt":
        raise BundleError(f"{path}: expected a deep prompt to start from, got '{manifest.method}'")
    _check_backbone(path, manifest, backbone)
    _, saved = _config(manifest)
    assert isinstance(saved, DeepPromptConfig)
    saved = replace(saved, prompt_layers=saved.prompt_layers or backbone.geometry.layers)
    taken = {}
    for setting in _OF_START:
        held, wanted = getattr(saved, setting), getattr(config, setting)
        if setting not in given or wanted is None:
            taken[setting] = held
        elif wanted != held and (setting, held) != ("sharing", "tied"):
            raise ConfigError(
                f"{setting}: expected {held!r}, as in the initial prompt, got {wanted!r}; omit it"
            )
    return replace(config, **taken), read_state(path, manifest)


def _check_backbone(path: Path, manifest: TaskManifest, backbone: Backbone) -> None:
    if backbone.fingerprint != manifest.backbone_fingerprint:
        raise WrongBackbone(
            f"{path}: the task was trained on backbone '{manifest.backbone}' with fingerprint "
            f"{manifest.backbone_fingerprint}, but '{backbone.name}' has fingerprint "
            f"{backbone.fingerprint}; load it with its own backbone, or retrain it on this one"
        )
    check_probe(path, manifest, backbone)


def check_probe(path: Path, manifest: TaskManifest, backbone: Backbone) -> None:
    """Reject a backbone with the right weights but different vectors.

    Raises:
        WrongBackbone: If its probe vector differs from the one recorded at training time.
    """
    if not same_probe(manifest.backbone_probe, backbone.probe):
        raise WrongBackbone(
            f"{path}: backbone '{backbone.name}' has the weights that the task was trained on, but "
            "encodes differently; check whether config.json has changed"
        )


def _build_method(
    manifest: TaskManifest, backbone: Backbone, state: Mapping[str, Tensor]
) -> Method:
    """Build a manifest's method, checking its sizes against the saved tensors."""
    name, config = _config(manifest)
    if isinstance(config, LoraConfig):
        widths = {m.in_features for m in backbone.model.modules() if isinstance(m, nn.Linear)}
        found = {tuple(x.shape) for key, x in state.items() if "lora_A" in key}
        if any(len(shape) != 2 or shape[1] not in widths for shape in found) or {
            shape[0] for shape in found
        } != {config.rank}:
            raise BundleError(
                f"rank: expected the rank of the saved weights {sorted(found)}, got {config.rank}"
            )
    rows = state if isinstance(config, DeepPromptConfig) else None
    return MethodFactory(rows=rows).build(name, backbone, config, seed=0)


def _config(manifest: TaskManifest) -> tuple[MethodName, MethodConfig]:
    settings = dict(manifest.settings)
    # The saved rows include the MLP's output.
    if manifest.method == "deep-prompt":
        settings["reparametrisation"] = 0
    return config_from(manifest.method, settings)


def load_encoder(
    *,
    task: Path | None = None,
    backbone: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> Encoder:
    """Load the encoder of a task bundle or a bare backbone.

    Args:
        task: Task bundle; combine with ``backbone`` to use a copy of its backbone elsewhere.

    Raises:
        ValueError: If neither is given.
        BundleError: If the bundle is malformed.
        WrongBackbone: If the task was trained on another backbone.
        BackboneError: If the backbone cannot be loaded.
    """
    if task is None and backbone is None:
        raise ValueError("expected a task bundle or a backbone, got neither")
    if task is None:
        assert backbone is not None
        return Encoder(Backbone.load(backbone, device=device, dtype=dtype))
    name = backbone if backbone is not None else read_manifest(task).backbone
    return load_task(task, backbone=Backbone.load(name, device=device, dtype=dtype))
