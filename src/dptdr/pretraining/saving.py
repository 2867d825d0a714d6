"""Save a pretrained encoder as a Hugging Face folder with its pooling settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dptdr.errors import ConfigError
from dptdr.io.atomic import atomic_folder, write_json
from dptdr.model import Backbone
from dptdr.model.backbone import resolve
from dptdr.model.injection import quiet_transformers
from dptdr.pretraining.objective import Heads
from dptdr.pretraining.saved_heads import HEAD_FILE, write_saved_heads

FACTS_FILE = "pretraining.json"

_POOLING_NAMES = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}


def refuse_source(out: Path, *, backbone: Backbone) -> None:
    """Refuse to overwrite the source encoder.

    Raises:
        ConfigError: If ``out`` is its folder.
    """
    source = resolve(backbone.name)
    if source is not None and out.resolve() == source.resolve():
        raise ConfigError(
            f"--out {out}: this is the source backbone; choose another folder, so that tasks "
            "trained on it remain usable"
        )


def save_backbone(
    path: Path, backbone: Backbone, *, facts: Mapping[str, Any], heads: Heads | None = None
) -> None:
    """Write an encoder, its tokenizer and its pooling settings, atomically.

    Args:
        facts: Contents of ``pretraining.json``.
        heads: Heads to save along, so that pretraining can continue.

    Raises:
        OutputError: If writing fails; an existing folder is unchanged.
    """
    with atomic_folder(path) as folder:
        with quiet_transformers():
            backbone.model.save_pretrained(folder)
            backbone.tokenizer.save_pretrained(folder)
        _write_modules(folder, backbone)
        if heads is not None:
            write_saved_heads(folder / HEAD_FILE, heads)
        write_json(folder / FACTS_FILE, dict(facts))


def _write_modules(folder: Path, backbone: Backbone) -> None:
    """Write the sentence-transformers files: pooling, lengths and prefixes."""
    pooling = backbone.pooling
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if pooling.normalise:
        kinds.append(("2_Normalize", "Normalize"))
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": place,
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, (place, kind) in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    for place, _ in kinds[1:]:
        (folder / place).mkdir()
    chosen = _POOLING_NAMES[pooling.pool]
    modes = {f"pooling_mode_{mode}": mode == chosen for mode in _POOLING_NAMES.values()}
    write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": backbone.dim, "include_prompt": True, **modes},
    )
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": pooling.max_tokens, "do_lower_case": False},
    )
    prompts = {"query": pooling.query_prefix, "document": pooling.passage_prefix}
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "dot"},
    )
