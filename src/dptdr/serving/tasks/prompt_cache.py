"""Prompts of served tasks: memory-mapped, and cached while in use."""

import contextlib
import ctypes
import mmap
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from dptdr.config.methods import DeepPromptConfig
from dptdr.errors import BundleError
from dptdr.model.backbone import Backbone, Side
from dptdr.model.bundle import TaskManifest
from dptdr.model.encoder import Limits
from dptdr.model.packing import PromptRows
from dptdr.model.prompt import saved_rows
from dptdr.model.prompt_rows import FeedForwardRows
from dptdr.serving.searching import ServedIndex

_PAGEOUT = 21
"""Linux MADV_PAGEOUT: reclaim pages now; their content stays readable."""


class PromptFile:
    """The memory-mapped prompts of a bundle; readable even after the file is deleted.

    Args:
        path: The safetensors file.
        key: Key of the content.

    Raises:
        BundleError: If it is not a safetensors file.
    """

    def __init__(self, path: Path, *, key: str) -> None:
        self.path = path
        self.key = key
        try:
            self._file: Any = safetensors.safe_open(path, framework="pt")
        except (safetensors.SafetensorError, OSError) as error:
            raise BundleError(f"{path}: {error}") from None

    def rows(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one prompt under their names in the bundle."""
        keys = [key for key in self._file.keys() if key.split(".")[0] == name]  # noqa: SIM118
        return {key: self._file.get_tensor(key) for key in keys}


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskVersion:
    """A loaded, immutable version of a task.

    Args:
        limits: Maximum tokens per side.
        prompts: Prompt name in the file per side; ``None`` for the bare backbone.
        fingerprints: Fingerprint of the vectors per side.
        config: The prompt's settings; this and the following are ``None`` for the bare backbone.
        manifest: Contents of ``task.json``.
        added: Time it was added, ISO 8601.
        index: The version's own index.
        index_error: Why the index cannot be read.
    """

    task: str
    version: str
    limits: Limits
    prompts: Mapping[Side, str | None]
    fingerprints: Mapping[Side, str]
    config: DeepPromptConfig | None = None
    file: PromptFile | None = None
    manifest: TaskManifest | None = None
    added: str = ""
    index: ServedIndex | None = None
    index_error: str = ""

    @property
    def name(self) -> str:
        """``task@version``."""
        return f"{self.task}@{self.version}"


class PromptCache:
    """An LRU cache of prompts.

    Args:
        budget_bytes: Maximum size, not counting prompts in use by a running batch.
        backbone: Determines device and dtype of the rows.
    """

    def __init__(self, budget_bytes: int, *, backbone: Backbone) -> None:
        parameter = next(backbone.model.parameters())
        self.budget_bytes = budget_bytes
        self._geometry = backbone.geometry
        self._dim = backbone.dim
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._device = parameter.device
        self._dtype = parameter.dtype
        self._rows: OrderedDict[tuple[str, str], PromptRows] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, version: TaskVersion, side: Side) -> PromptRows | None:
        """Return the rows for a side, or ``None`` if the bare backbone encodes it."""
        name = version.prompts[side]
        if name is None or version.file is None or version.config is None:
            return None
        key = (version.file.key, name)
        with self._lock:
            found = self._rows.get(key)
            if found is not None:
                self._rows.move_to_end(key)
                self.hits += 1
                return found
            self.misses += 1
        mapped = version.file.rows(name)
        made = self.load(mapped, version.config, name=name)
        for tensor in mapped.values():
            release(tensor)
        with self._lock:
            # Another thread may have loaded the same rows; share one object, so that rows group.
            found = self._rows.setdefault(key, made)
            self._rows.move_to_end(key)
            if found is made:
                self.bytes += made.bytes
                while self.bytes > self.budget_bytes and len(self._rows) > 1:
                    _, oldest = self._rows.popitem(last=False)
                    self.bytes -= oldest.bytes
        return found

    def load(
        self, tensors: Mapping[str, Tensor], config: DeepPromptConfig, *, name: str
    ) -> PromptRows:
        """Load the rows of a file in the layout of attention and feed-forward layers.

        Raises:
            BundleError: If parts are missing.
            ValueError: If a shape does not match the backbone.
        """
        rows, feed_forward = saved_rows(tensors, name, geometry=self._geometry, dim=self._dim)
        # Make it token-major and contiguous for attention once, instead of in every pass.
        keys, values = (
            rows[:, part].transpose(1, 2).to(self._device, self._dtype).contiguous()
            for part in (0, 1)
        )
        if feed_forward is not None:
            # Copy, so that the file's pages can be released.
            feed_forward = FeedForwardRows(
                *(x.to(self._device, self._dtype, copy=True) for x in feed_forward)
            )
        return PromptRows(
            keys,
            values,
            shift=rows.shape[3] if config.position == "shifted" else 0,
            feed_forward=feed_forward,
        )

    def forget(self, keys: set[str]) -> None:
        """Evict the rows of files that no version uses any more."""
        with self._lock:
            for key in [key for key in self._rows if key[0] in keys]:
                self.bytes -= self._rows.pop(key).bytes

    def __len__(self) -> int:
        return len(self._rows)


def release(mapped: Tensor) -> None:
    """Release the pages of a memory-mapped tensor after copying it.

    Otherwise they count as this process's memory until something else needs them.
    """
    if sys.platform != "linux" or mapped.device.type != "cpu":
        return
    first = mapped.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    size = mapped.data_ptr() + mapped.nbytes - first
    # Only a hint: harmless if an older kernel rejects it.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), _PAGEOUT)
