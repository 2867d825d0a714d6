"""Prompts for architectures that compute attention with plain torch calls.

MPNet, DeBERTa, DeBERTa-v2 and others do not use the transformers attention registry. A torch
function mode intercepts their calls during the forward pass: the first product of each layer is
query times key, the softmax gets extra columns for the prompt, and the prompt's contribution is
added to the product of probabilities and values. Layers are numbered by their softmax calls.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dptdr.errors import UnsupportedBackbone
from dptdr.model.prompt_rows import PromptCall, layer_rows, visible_columns

_PRODUCTS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}
_SOFTMAXES = {torch.softmax, functional.softmax, Tensor.softmax}
_DIVISIONS = {torch.div, torch.true_divide, Tensor.div, Tensor.div_, Tensor.__truediv__}
_DIVISIONS |= {Tensor.__itruediv__, Tensor.true_divide}
_MULTIPLICATIONS = {torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__imul__}
_DROPOUTS = {functional.dropout, torch.dropout}


class InterceptedAttention(TorchFunctionMode):
    """Adds the prompt of a :class:`PromptCall` to attention computed by plain torch calls.

    Args:
        call: The prompt; its ``layer`` counts the softmax calls so far.
    """

    def __init__(self, call: PromptCall) -> None:
        super().__init__()
        self.call = call
        self._query: Tensor | None = None
        self._key: Tensor | None = None
        self._scores: Tensor | None = None
        self._factor: float | Tensor = 1.0
        self._division: tuple[Tensor, Any] | None = None
        self._prompt_probabilities: Tensor | None = None
        self._waiting = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Intercept one torch call; see the module docstring."""
        kwargs = kwargs or {}
        if self._waiting:
            return self._after_softmax(func, args, kwargs)
        if func in _SOFTMAXES and self._scores is not None and args[0].dim() == 4:
            return self._softmax(func, args, kwargs)
        result = func(*args, **kwargs)
        if func in _DIVISIONS:
            self._note_division(args, result)
        elif func in _MULTIPLICATIONS and self._is_scores(args[0]):
            self._factor = self._factor * args[1]
            self._scores = result
        elif func in _PRODUCTS and self._scores is None:
            self._note_product(args, result)
        return result

    def _is_scores(self, tensor: Any) -> bool:
        return self._scores is not None and tensor is self._scores

    def _note_division(self, args: Any, result: Tensor) -> None:
        if self._is_scores(args[0]):
            self._factor = self._factor / args[1]
            self._scores = result
        else:
            self._division = (result, args[1])

    def _note_product(self, args: Any, result: Tensor) -> None:
        query, transposed_key = args[0], args[1]
        self._query = query
        self._scores = result
        self._factor = 1.0
        if self._division is not None and self._division[0] is transposed_key:
            # DeBERTa-v2 divides the keys, not the scores.
            self._factor = 1.0 / self._division[1]
            transposed_key = transposed_key * self._division[1]
        self._key = transposed_key.transpose(-1, -2)

    def _softmax(self, func: Callable[..., Tensor], args: Any, kwargs: dict[str, Any]) -> Tensor:
        scores: Tensor = args[0]
        raw, query = self._scores, self._query
        if raw is None or query is None or raw.numel() != scores.numel():
            raise UnsupportedBackbone(
                "attention scores could not be traced to a query-key product; deep prompts do not "
                "support this architecture"
            )
        texts, heads, tokens = scores.shape[:3]
        query = query.reshape(texts, heads, tokens, query.shape[-1])
        self._waiting = True
        self._query = query
        rows = self.call.attention
        place = -1 if rows is None else self.call.place(rows.keys, self.call.layer)
        if rows is None or place < 0:
            return func(*args, **kwargs)
        keys, _ = layer_rows(rows, place, query=query)
        added = (torch.matmul(query, keys.transpose(-1, -2)) * self._factor).to(scores.dtype)
        hidden = ~visible_columns(rows, query=query)
        added = added.masked_fill(hidden, torch.finfo(scores.dtype).min)
        full = func(torch.cat([added, scores], dim=-1), *args[1:], **kwargs)
        self._prompt_probabilities = full[..., : added.shape[-1]]
        return full[..., added.shape[-1] :].contiguous()

    def _after_softmax(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Track dropout on the probabilities, then add the prompt to the attention output."""
        if func is functional.linear:
            raise UnsupportedBackbone(
                "deep prompts do not support attention that mixes probabilities between heads "
                "(talking heads)"
            )
        result = func(*args, **kwargs)
        if func in _DROPOUTS:
            if self._prompt_probabilities is not None:
                self._prompt_probabilities = func(self._prompt_probabilities, *args[1:], **kwargs)
        elif func in _PRODUCTS:
            result = self._context(result, value=args[1])
        return result

    def _context(self, context: Tensor, *, value: Tensor) -> Tensor:
        assert self._query is not None
        assert self._key is not None
        query, layer = self._query, self.call.layer
        texts, heads = query.shape[:2]
        if self.call.observer is not None:
            shape = (texts, heads, -1, query.shape[-1])
            self.call.observer(
                layer,
                query,
                self._key.reshape(shape),
                value.reshape(shape),
                None,
                float(self._factor),
            )
        if self._prompt_probabilities is not None:
            rows = self.call.attention
            assert rows is not None
            _, values = layer_rows(rows, self.call.place(rows.keys, layer), query=query)
            share = torch.matmul(self._prompt_probabilities.to(values.dtype), values)
            context = context + share.reshape(context.shape)
        self.call.layer = layer + 1
        self._query = self._key = self._scores = None
        self._division = self._prompt_probabilities = None
        self._waiting = False
        return context
