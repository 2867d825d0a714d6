"""Tiny random encoders of many architectures, with a tokenizer made on the spot: no download."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn

from dptdr.model import Backbone, Pooling

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "a",
    "the",
    "of",
    "to",
    "in",
    "and",
    "is",
    "for",
    "red",
    "green",
    "blue",
    "dark",
    "light",
    "car",
    "boat",
    "train",
    "house",
    "garden",
    "river",
    "stone",
    "who",
    "what",
    "where",
    "when",
    "how",
    "why",
    "does",
    "run",
    "grow",
    "build",
    "paint",
    "cross",
    "fast",
    "slow",
    "old",
    "new",
    "big",
    "small",
    "cat",
    "dog",
    "bird",
    "fish",
    "tree",
    "leaf",
    "root",
    "seed",
    "water",
    "fire",
    "wind",
    "snow",
    "rain",
    "sun",
    "moon",
    "star",
    "day",
    "night",
    "year",
]
SUFFIXES = ["##s", "##ed", "##ing", "##er", "##ly"]
VOCABULARY = [*SPECIAL, *WORDS, *[chr(97 + i) for i in range(26)], *SUFFIXES]
VOCABULARY = list(dict.fromkeys(VOCABULARY))
VOCAB_SIZE = 96

HIDDEN = 32
HEADS = 4


def tiny_tokenizer(max_tokens: int = 64) -> transformers.PreTrainedTokenizerFast:
    """A WordPiece tokenizer over a few English words; ``[PAD]`` is 0, ``[CLS]`` 2, ``[SEP]`` 3."""
    ids = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


_BERT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
}
_SMALL = _BERT | {"num_hidden_layers": 2}


def _t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=VOCAB_SIZE, d_model=HIDDEN, d_kv=8, d_ff=48, num_layers=2, num_heads=HEADS
    )
    return transformers.T5EncoderModel(config)


def _model(config: str, settings: dict[str, Any], **more: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        made = getattr(transformers, config)(**settings, **more)
        return transformers.AutoModel.from_config(made)

    return build


_DISENTANGLED: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}

REGISTRY: dict[str, Callable[[], nn.Module]] = {
    "bert": _model("BertConfig", _BERT),
    "roberta": _model("RobertaConfig", _SMALL | {"pad_token_id": 1}),
    "xlm-roberta": _model("XLMRobertaConfig", _SMALL | {"pad_token_id": 1}),
    "camembert": _model("CamembertConfig", _SMALL | {"pad_token_id": 1}),
    "electra": _model("ElectraConfig", _SMALL, embedding_size=24),
    "ernie": _model("ErnieConfig", _SMALL),
    "distilbert": _model(
        "DistilBertConfig",
        {
            "vocab_size": VOCAB_SIZE,
            "dim": HIDDEN,
            "n_layers": 2,
            "n_heads": HEADS,
            "hidden_dim": 48,
            "max_position_embeddings": 80,
        },
    ),
    "albert": _model("AlbertConfig", _BERT, embedding_size=24),
    "albert-groups": _model("AlbertConfig", _BERT, embedding_size=24, inner_group_num=2),
    "albert-two-groups": _model(
        "AlbertConfig", _BERT | {"num_hidden_layers": 4}, embedding_size=24, num_hidden_groups=2
    ),
    "modernbert": _model(
        "ModernBertConfig",
        _BERT,
        local_attention=8,
        global_attn_every_n_layers=3,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    ),
    "nomic-bert": _model("NomicBertConfig", _SMALL),
    "gte": _model("GteConfig", _SMALL),
    "jina-v3": _model("JinaEmbeddingsV3Config", _SMALL | {"pad_token_id": 1}),
    "t5": _t5,
    "qwen3": _model(
        "Qwen3Config",
        _SMALL,
        num_key_value_heads=2,
        head_dim=16,
        use_cache=False,
        layer_types=["full_attention", "full_attention"],
    ),
    "llama": _model("LlamaConfig", _SMALL, num_key_value_heads=2, use_cache=False),
    "mistral-window": _model(
        "MistralConfig", _SMALL, num_key_value_heads=2, sliding_window=4, use_cache=False
    ),
}
"""Architectures that ask the attention registry of transformers."""

INTERCEPTED: dict[str, Callable[[], nn.Module]] = {
    "mpnet": _model("MPNetConfig", _SMALL | {"pad_token_id": 1}),
    "deberta": _model("DebertaConfig", _SMALL, **_DISENTANGLED),
    "deberta-v2": _model("DebertaV2Config", _SMALL, **_DISENTANGLED),
    "deberta-v3": _model(
        "DebertaV2Config",
        _SMALL,
        **_DISENTANGLED,
        share_att_key=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
    ),
    "rembert": _model("RemBertConfig", _SMALL, input_embedding_size=24, output_embedding_size=24),
    "roformer": _model("RoFormerConfig", _SMALL, embedding_size=HIDDEN),
    "megatron-bert": _model("MegatronBertConfig", _SMALL),
}
"""Architectures that compute attention with plain torch calls."""

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = REGISTRY | INTERCEPTED


def tiny_model(architecture: str = "bert", *, seed: int = 0) -> nn.Module:
    """A random model whose attention is far from uniform, a function of the seed alone."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[architecture]()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                # Standard initialisation (0.02) makes all attention scores nearly equal, and
                # nearly any mistake invisible.
                parameter.copy_(noise * 0.25)
            else:
                parameter.add_(noise * 0.1)
    return model.eval()


def tiny_backbone(
    architecture: str = "bert",
    *,
    seed: int = 0,
    pool: str = "mean",
    normalise: bool = False,
    max_tokens: int = 64,
    name: str | None = None,
) -> Backbone:
    """A frozen tiny encoder with tokenizer and pooling."""
    return Backbone(
        tiny_model(architecture, seed=seed),
        tiny_tokenizer(max_tokens),
        name=name or f"tiny-{architecture}",
        pooling=Pooling(pool=pool, normalise=normalise, max_tokens=max_tokens),
    )


def save_tiny(folder: Path, architecture: str = "bert", *, seed: int = 0) -> Path:
    """Write a tiny encoder as a plain Hugging Face folder, to be loaded by its path."""
    tiny_model(architecture, seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def token_batch(
    lengths: tuple[int, ...] = (9, 4, 12), *, seed: int = 0, padding: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random token ids, padded on the right, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(5, len(VOCABULARY), (len(lengths), longest), generator=generator)
    mask = torch.zeros(len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    ids = torch.where(mask > 0, ids, padding)
    return ids, mask
