"""dptdr: one frozen text encoder, any number of retrieval services.

::

    task = dptdr.train("DATA", out="TASK", backbone="minilm")
    print(dptdr.evaluate("DATA", task).measures)
    index = dptdr.build_index("DATA", task, out="INDEX")
    print(index.search("look into an archive", k=5))

The names below are loaded when they are first used, so that ``dptdr --help`` imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dptdr.api import (
        Encoder,
        SearchIndex,
        SearchResult,
        Task,
        build_index,
        compare,
        encode,
        evaluate,
        load,
        mine,
        open_index,
        pretrain,
        retrieve,
        serve,
        train,
    )

__version__ = "0.1.0"

__all__ = [
    "Encoder",
    "SearchIndex",
    "SearchResult",
    "Task",
    "build_index",
    "compare",
    "encode",
    "evaluate",
    "load",
    "mine",
    "open_index",
    "pretrain",
    "retrieve",
    "serve",
    "train",
]


def __getattr__(name: str) -> Any:
    """Return a public name from :mod:`dptdr.api`."""
    if name in __all__:
        return getattr(importlib.import_module("dptdr.api"), name)
    raise AttributeError(f"module 'dptdr' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, "__version__"]
