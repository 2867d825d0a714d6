"""An mteb encoder, and data folders as mteb retrieval tasks."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.types import PromptType
from torch import Tensor

from dptdr.errors import ConfigError
from dptdr.integrations import as_encoder
from dptdr.io.beir import BeirFolder
from dptdr.io.identical import own_passages, report_own_passages
from dptdr.model.encoder import Encoder


class MtebModel:
    """A task as a model for ``mteb.evaluate``.

    Args:
        encoder: A loaded task, or its folder.
    """

    def __init__(self, encoder: Encoder | Path | str) -> None:
        encoder = as_encoder(encoder)
        self.encoder = encoder
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": f"dptdr/{encoder.name}",
                "revision": encoder.query_fingerprint[:12],
                "embed_dim": encoder.dim,
                "similarity_fn_name": "dot",
            }
        )

    def encode(
        self, inputs: Iterable[dict[str, Any]], *, prompt_type: PromptType | None = None, **_: Any
    ) -> Float[np.ndarray, "texts dim"]:
        """Encode texts; anything but queries is encoded as passages."""
        texts = []
        for batch in inputs:
            if isinstance(batch["text"], str):
                raise ConfigError("inputs: expected batches with lists of texts, got a single text")
            texts += batch["text"]
        if prompt_type == PromptType.query:
            return self.encoder.encode_queries(texts)
        return self.encoder.encode_passages(texts)

    def similarity(self, queries: Any, passages: Any) -> Float[Tensor, "queries passages"]:
        """Compute dot products of all queries with all passages."""
        return torch.as_tensor(queries) @ torch.as_tensor(passages).T

    def similarity_pairwise(self, first: Any, second: Any) -> Float[Tensor, " pairs"]:
        """Compute the dot product of each pair."""
        return (torch.as_tensor(first) * torch.as_tensor(second)).sum(dim=-1)


class LocalRetrieval(AbsTaskRetrieval):  # type: ignore[misc]
    """A data folder as an mteb retrieval task; nothing is downloaded."""

    metadata = TaskMetadata(
        name="LocalRetrieval",
        dataset={"path": "local", "revision": "1"},
        description="Retrieval on a local data folder.",
        type="Retrieval",
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def __init__(self, data: str | Path, *, split: str = "test") -> None:
        super().__init__()
        self.folder = BeirFolder(Path(data))
        self.split = split
        name = "".join(word.title() for word in Path(data).name.replace("-", " ").split())
        self.metadata = self.metadata.model_copy(
            update={"name": name or "Local", "eval_splits": [split]}
        )

    def load_data(self, *_: Any, **__: Any) -> None:
        """Load the data folder."""
        qrels = self.folder.qrels(self.split)
        queries = [query for query in self.folder.queries() if query.id in qrels]
        passages = list(self.folder.passages())
        own = own_passages(queries, passages, qrels=qrels)
        report_own_passages(len(own))
        # mteb knows ids only: other queries with a passage's id get a new one.
        self.ignore_identical_ids = bool(own)
        ids = {passage.id for passage in passages} - own.keys() if own else set()
        names = {
            query.id: f"query:{query.id}" if query.id in ids else query.id for query in queries
        }
        self.dataset = {
            "default": {
                self.split: {
                    "corpus": Dataset.from_dict(
                        {
                            "id": [passage.id for passage in passages],
                            "title": [passage.title for passage in passages],
                            "text": [passage.text for passage in passages],
                        }
                    ),
                    "queries": Dataset.from_dict(
                        {
                            "id": [names[query.id] for query in queries],
                            "text": [query.text for query in queries],
                        }
                    ),
                    "relevant_docs": {names[key]: grades for key, grades in qrels.items()},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True
