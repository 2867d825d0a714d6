"""Pooling of token states into one vector per text."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dptdr.errors import BackboneError, DataError
from dptdr.io.atomic import read_json

Pool = Literal["cls", "mean", "last"]
MODULES_FILE = "modules.json"


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """Pooling settings of an encoder.

    Args:
        pool: First token (``cls``), mean over tokens (``mean``) or last token (``last``).
        normalise: Scale vectors to unit length.
        max_tokens: Maximum text length including special tokens; longer texts are truncated.
    """

    pool: Pool = "mean"
    normalise: bool = False
    max_tokens: int = 512
    query_prefix: str = field(default="")
    passage_prefix: str = field(default="")


def pool_states(
    states: Float[Tensor, "texts tokens dim"],
    mask: Int[Tensor, "texts tokens"],
    *,
    pooling: Pooling,
) -> Float[Tensor, "texts dim"]:
    """Pool token states into one float32 vector per text.

    Args:
        mask: 1 for tokens, 0 for padding, on either side.
    """
    states = states.float()
    if pooling.pool == "mean":
        weights = mask.to(states.dtype).unsqueeze(-1)
        vectors = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
    else:
        positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        if pooling.pool == "cls":
            index = torch.where(mask > 0, positions, mask.shape[1]).min(dim=1).values
            index = index.clamp(max=mask.shape[1] - 1)
        else:
            index = torch.where(mask > 0, positions, -1).max(dim=1).values.clamp(min=0)
        vectors = states[torch.arange(states.shape[0], device=states.device), index]
    if pooling.normalise:
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
    return vectors


def read_pooling(folder: Path, *, model_max_tokens: int, decoder: bool) -> Pooling:
    """Read pooling, normalisation, maximum length and prefixes from a sentence-transformers folder.

    Without a ``modules.json``, encoders default to CLS pooling and decoders to the last token,
    without normalisation, as is usual for plain Hugging Face checkpoints.

    Raises:
        BackboneError: If the folder uses an unsupported module or pooling mode.
    """
    default: Pool = "last" if decoder else "cls"
    modules_file = folder / MODULES_FILE
    if not modules_file.is_file():
        return Pooling(pool=default, max_tokens=model_max_tokens)
    prefixes = _read_prefixes(folder / "config_sentence_transformers.json")
    pool, normalise = default, False
    for kind, path in _modules(modules_file):
        if kind == "Pooling":
            pool = _read_pool(folder / path / "config.json", prefixes=prefixes)
        elif kind == "Normalize":
            normalise = True
        elif kind != "Transformer":
            raise BackboneError(
                f"{modules_file}: expected modules Transformer, Pooling and Normalize, got '{kind}'"
            )
    return Pooling(
        pool=pool,
        normalise=normalise,
        max_tokens=_read_limit(
            transformer_folder(folder) / "sentence_bert_config.json", most=model_max_tokens
        ),
        query_prefix=prefixes[0],
        passage_prefix=prefixes[1],
    )


def transformer_folder(folder: Path) -> Path:
    """Return the folder with the encoder's files; old sentence-transformers models use a subfolder.

    Raises:
        BackboneError: If ``modules.json`` is malformed.
    """
    modules_file = folder / MODULES_FILE
    if modules_file.is_file():
        for kind, path in _modules(modules_file):
            if kind == "Transformer":
                return folder / path
    return folder


def _modules(path: Path) -> list[tuple[str, str]]:
    """Return each module's type and folder."""
    found = _read(path)
    if not isinstance(found, list) or not all(
        isinstance(module, dict) and {"type", "path"} <= set(module) for module in found
    ):
        raise BackboneError(f"{path}: expected a list of modules with 'type' and 'path'")
    return [(str(m["type"]).rsplit(".", maxsplit=1)[-1], str(m["path"])) for m in found]


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except DataError as error:
        raise BackboneError(f"{error}; the encoder folder is damaged, copy it again") from None


def _read_object(path: Path) -> dict[str, Any]:
    found = _read(path)
    if not isinstance(found, dict):
        raise BackboneError(f"{path}: expected a JSON object")
    return found


def _read_pool(path: Path, *, prefixes: tuple[str, str]) -> Pool:
    config = _read_object(path)
    if config.get("include_prompt") is False and any(prefixes):
        raise BackboneError(
            f"{path}: excluding the prefix from pooling (include_prompt false) is not supported"
        )
    names: dict[str, Pool] = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_lasttoken": "last",
    }
    newer: dict[str, Pool] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
    mode = config.get("pooling_mode")
    if isinstance(mode, str) and mode in newer:
        return newer[mode]
    on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(on) == 1 and on[0] in names:
        return names[on[0]]
    raise BackboneError(
        f"{path}: expected exactly one of CLS, mean or last-token pooling, got {on or mode}"
    )


def _read_limit(path: Path, *, most: int) -> int:
    """Return the maximum text length, from the settings or the number of positions."""
    if not path.is_file():
        return most
    config = _read_object(path)
    if config.get("do_lower_case"):
        raise BackboneError(
            f"{path}: 'do_lower_case' is not supported; set it to false, use an uncased tokenizer"
        )
    limit = config.get("max_seq_length")
    return min(most, int(limit)) if limit else most


def _read_prefixes(path: Path) -> tuple[str, str]:
    if not path.is_file():
        return "", ""
    prompts = _read_object(path).get("prompts") or {}
    passage = next((prompts[n] for n in ("document", "passage", "corpus") if n in prompts), "")
    return str(prompts.get("query") or ""), str(passage or "")
