"""Masked-language heads, from the encoder's checkpoint or new."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dptdr.errors import BackboneError
from dptdr.model import Backbone
from dptdr.model.backbone import resolve
from dptdr.model.injection import quiet_transformers
from dptdr.model.pooling import transformer_folder

Origin = Literal["checkpoint", "kept", "new"]
"""Origin of a head's weights: encoder checkpoint, earlier pretraining, or random."""


_INITIAL_SCALE = 0.02


class MlmHead(nn.Module):
    """Maps token states to vocabulary scores, using the encoder's word embeddings."""

    kind: Literal["own", "tied"]

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        # In a list, so that the encoder's weights are not registered as the head's.
        self._encoder = [backbone.model]

    def forward(self, states: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens vocabulary"]:
        """Compute vocabulary scores for each state."""
        raise NotImplementedError

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Return the head's weights by name, excluding those shared with the encoder."""
        shared = {id(p) for p in self._encoder[0].parameters()}
        return {n: p for n, p in self.named_parameters() if id(p) not in shared}


class TiedHead(MlmHead):
    """A new BERT-like head: dense layer, GELU, layer norm, word embeddings, bias.

    Source:
        Devlin et al., arXiv 1810.04805; tied embeddings: Press and Wolf, arXiv 1608.05859.
    """

    kind = "tied"

    def __init__(self, backbone: Backbone, *, seed: int) -> None:
        super().__init__(backbone)
        words: Tensor = backbone.model.get_input_embeddings().weight
        vocabulary, width = words.shape
        self.dense = nn.Linear(backbone.dim, width)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        initialise(self, seed=seed)

    def forward(self, states: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens vocabulary"]:
        """Compute vocabulary scores for each state."""
        words: Tensor = self._encoder[0].get_input_embeddings().weight
        made = self.norm(functional.gelu(self.dense(states)))
        return functional.linear(made, words, self.bias.to(words.dtype))


class OwnHead(MlmHead):
    """The architecture's own head from transformers.

    Heads differ in name and form between architectures, so the whole masked-language model is
    called, with its encoder replaced by a module that returns given states.
    """

    kind = "own"

    def __init__(self, backbone: Backbone, model: Any) -> None:
        super().__init__(backbone)
        name = model.base_model_prefix
        embeddings: Any = backbone.model.get_input_embeddings()
        output = model.get_output_embeddings()
        before: Any = model.get_input_embeddings()
        if output is not None and output.weight is before.weight:
            output.weight = embeddings.weight
        self._given = _GivenStates(backbone.model)
        setattr(model, name, self._given)
        self.model: Any = model

    def forward(self, states: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens vocabulary"]:
        """Compute vocabulary scores for each state."""
        ids = torch.zeros(1, states.shape[0], dtype=torch.long, device=states.device)
        self._given.states = states.unsqueeze(0)
        try:
            scores: Tensor = self.model(input_ids=ids).logits[0]
        finally:
            self._given.states = None
        return scores


class _GivenStates(nn.Module):
    """Replaces a masked-language model's encoder and returns given states."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self._encoder = [encoder]
        self.states: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=self.states)

    def get_input_embeddings(self) -> Any:
        return self._encoder[0].get_input_embeddings()


def own_head(backbone: Backbone) -> tuple[OwnHead | None, bool]:
    """Load the architecture's own head, and report whether the checkpoint has its weights.

    The head is ``None`` if transformers has none for the architecture.

    Raises:
        BackboneError: If the checkpoint's head has the wrong shape.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM

    folder = resolve(backbone.name)
    place = backbone.name if folder is None else str(transformer_folder(folder))
    with quiet_transformers():
        try:
            # The folder was checked when loading the backbone: only the architecture can fail.
            config = AutoConfig.from_pretrained(place)
            model, info = AutoModelForMaskedLM.from_pretrained(
                place,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (ValueError, KeyError):
            return None, False
    encoder = f"{model.base_model_prefix}."
    missing = [name for name in info["missing_keys"] if not name.startswith(encoder)]
    wrong = sorted(
        f"{name}: expected {tuple(wanted)}, got {tuple(found)}"
        for name, found, wanted in info["mismatched_keys"]
    )
    if wrong:
        raise BackboneError(
            f"backbone '{backbone.name}': the masked-language head in its checkpoint has "
            f"the wrong shape ({'; '.join(wrong[:3])}), from another encoder or vocabulary; save "
            "encoder and head together, or the encoder alone"
        )
    return OwnHead(backbone, model.eval()).to(backbone.device), not missing


def initialise(module: nn.Module, *, seed: int) -> None:
    """Initialise a new head like BERT's, from a seed alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                drawn = torch.randn(parameter.shape, generator=generator) * _INITIAL_SCALE
                parameter.copy_(drawn)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)


class CondenserHead(nn.Module):
    """Extra transformer layers over early token states and the late text vector.

    Early states carry little of the text's overall meaning. To predict masked words, the head must
    take it from the vector, which pushes the encoder to store it there.

    Source:
        Gao and Callan, arXiv 2104.08253, section 3.2. Differs: for encoders with mean pooling, the
        pooled vector, not normalised, replaces the first token's late state.
    """

    def __init__(self, *, dim: int, heads: int, layers: int, seed: int) -> None:
        super().__init__()
        # Not called layers: the log counts the encoder's layers by that name.
        self.stack = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True
            )
            for _ in range(layers)
        )
        initialise(self, seed=seed)

    def forward(
        self,
        early: Float[Tensor, "texts tokens dim"],
        *,
        vectors: Float[Tensor, "texts dim"],
        mask: Tensor,
    ) -> Float[Tensor, "texts tokens dim"]:
        """Compute token states from early ones and each text's vector.

        Args:
            early: Token states after the early layer.
            vectors: Text vectors from the last layer.
            mask: 1 for tokens, 0 for padding on the right.
        """
        states = torch.cat([vectors.to(early.dtype).unsqueeze(1), early[:, 1:]], dim=1)
        padding = mask == 0
        for layer in self.stack:
            states = layer(states, src_key_padding_mask=padding)
        return states


def head_count(dim: int, *, wanted: int) -> int:
    """Return the largest head count that divides the width, at most the encoder's."""
    return next(heads for heads in range(min(wanted, dim), 0, -1) if dim % heads == 0)
