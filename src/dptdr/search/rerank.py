"""Re-rank the best hits with a slower, more accurate scorer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from dptdr.errors import VectorsError
from dptdr.records import Hit, Query, Run

Scorer: TypeAlias = Callable[[str, list[str]], Any]
"""Maps a query and passage contents to one score per passage; higher is better."""


def rerank(
    run: Mapping[str, Sequence[Hit]],
    *,
    queries: Sequence[Query],
    contents: Callable[[Sequence[str]], Sequence[str]],
    scorer: Scorer,
    top: int = 100,
) -> Run:
    """Rescore the best hits of each query; the rest follow in their original order.

    Args:
        run: First-stage hits.
        queries: Queries to re-rank; queries missing from the run are skipped.
        top: Hits to rescore per query, at least 1.

    Returns:
        The re-ranked run; ties keep their original order.

    Raises:
        VectorsError: If the scorer returns NaN, something other than numbers, or the wrong number
            of scores; or ``top`` is below 1.
    """
    if top < 1:
        raise VectorsError(f"top: expected at least 1 hit to re-rank, got {top}")
    ranked: Run = {}
    for query in queries:
        if query.id not in run:
            continue
        hits = list(run[query.id])
        first, rest = hits[:top], hits[top:]
        ranked[query.id] = _rescored(query, first, contents=contents, scorer=scorer)
        if ranked[query.id]:
            # The scores of the two stages are not comparable: put the rest below, one apart.
            lowest = ranked[query.id][-1].score
            ranked[query.id] += [
                Hit(hit.passage_id, lowest - place) for place, hit in enumerate(rest, start=1)
            ]
    return ranked


def _rescored(
    query: Query,
    hits: Sequence[Hit],
    *,
    contents: Callable[[Sequence[str]], Sequence[str]],
    scorer: Scorer,
) -> list[Hit]:
    if not hits:
        return []
    texts = list(contents([hit.passage_id for hit in hits]))
    returned = np.asarray(scorer(query.text, texts))
    if returned.dtype.kind not in "fiu":
        raise VectorsError(
            f"query {query.text[:60]!r}: expected one number per passage from the scorer, got "
            f"{str(returned.tolist())[:60]}"
        )
    scores = returned.astype(np.float64).reshape(-1)
    if len(scores) != len(hits):
        raise VectorsError(
            f"query {query.text[:60]!r}: expected {len(hits)} scores, got {len(scores)}"
        )
    if np.isnan(scores).any():
        raise VectorsError(
            f"query {query.text[:60]!r}: the scorer returned NaN for passage "
            f"'{hits[int(np.flatnonzero(np.isnan(scores))[0])].passage_id}'"
        )
    order = np.argsort(-scores, kind="stable")
    return [Hit(hits[place].passage_id, float(scores[place])) for place in order.tolist()]


def load_cross_encoder(name: str, *, device: str = "cpu") -> Any:
    """Load a sentence-transformers cross-encoder with one output and complete weights.

    Raises:
        VectorsError: If sentence-transformers is not installed; or the model is missing, damaged,
            incomplete (a new, random head would rank) or has several outputs; or its tokenizer
            belongs to another model.
    """
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        raise VectorsError(
            "cross-encoders need the package sentence-transformers; "
            "run `pip install 'dptdr[crossencoder]'`"
        ) from None
    from transformers import AutoModelForSequenceClassification

    try:
        # CrossEncoder does not say which weights were missing.
        _, info = AutoModelForSequenceClassification.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True
        )
        loaded = CrossEncoder(name, device=device)
    except Exception as error:
        # A damaged file fails anywhere in transformers, with any error.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise VectorsError(f"'{name}' cannot be loaded as a cross-encoder ({reason})") from None
    wrong = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    outputs = int(loaded.config.num_labels)
    words = len(loaded.tokenizer)
    known = int(loaded.model.get_input_embeddings().weight.shape[0])
    fault = None
    if wrong:
        fault = f"expected a sequence classifier with all weights, got none for {wrong[0]}"
    elif outputs != 1:
        fault = f"expected one output, got {outputs}"
    elif words > known:
        fault = f"expected a tokenizer of at most {known} tokens, got {words}, of another model"
    if fault is not None:
        raise VectorsError(f"'{name}' cannot be used as a cross-encoder: {fault}")
    return loaded


def cross_encoder(model: str, *, device: str = "cpu", raw: bool = False) -> Scorer:
    """Load a cross-encoder as a scorer; see :func:`load_cross_encoder`.

    Args:
        raw: Return logits, ignoring the activation in the model's config.
    """
    loaded = load_cross_encoder(model, device=device)
    options: dict[str, Any] = {"batch_size": 32, "show_progress_bar": False}
    if raw:
        import torch

        options["activation_fn"] = torch.nn.Identity()

    def score(query: str, texts: list[str]) -> Any:
        return loaded.predict([(query, text) for text in texts], **options)

    return score
