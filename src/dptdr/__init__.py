"""dptdr: one frozen text encoder, any number of retrieval services.

::

    task = dptdr.train("DATA", out="TASK", backbone="minilm")
    print(dptdr.evaluate("DATA", task).measures)
    index = dptdr.build_index("DATA", task, out="INDEX")
    print(index.search("look into an archive", k=5))

Public names are imported lazily, so that ``dptdr --help`` does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dptdr.io.startup import collector_off

if TYPE_CHECKING:
    from dptdr.api.encoding import encode as encode
    from dptdr.api.evaluation import compare as compare
    from dptdr.api.evaluation import evaluate as evaluate
    from dptdr.api.evaluation import retrieve as retrieve
    from dptdr.api.indexing import build_index as build_index
    from dptdr.api.indexing import open_index as open_index
    from dptdr.api.indexing import refresh_index as refresh_index
    from dptdr.api.mining import mine as mine
    from dptdr.api.serving import serve as serve
    from dptdr.api.task import Encoder as Encoder
    from dptdr.api.task import Task as Task
    from dptdr.api.task import load as load
    from dptdr.api.training import pretrain as pretrain
    from dptdr.api.training import train as train
    from dptdr.search.retriever import SearchIndex as SearchIndex
    from dptdr.search.retriever import SearchResult as SearchResult

__version__ = "0.1.0"

_HOMES = {
    "Encoder": "api.task",
    "SearchIndex": "search.retriever",
    "SearchResult": "search.retriever",
    "Task": "api.task",
    "build_index": "api.indexing",
    "compare": "api.evaluation",
    "encode": "api.encoding",
    "evaluate": "api.evaluation",
    "load": "api.task",
    "mine": "api.mining",
    "open_index": "api.indexing",
    "pretrain": "api.training",
    "refresh_index": "api.indexing",
    "retrieve": "api.evaluation",
    "serve": "api.serving",
    "train": "api.training",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _HOMES:
        with collector_off():
            return getattr(importlib.import_module(f"dptdr.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dptdr' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List the public names."""
    return [*_HOMES, "__version__"]
