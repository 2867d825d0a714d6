"""Prompts of served tasks: mapped from disk, and kept in memory while they are asked for."""

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
from dptdr.model.prompt import saved_rows
from dptdr.model.rows import FeedForwardRows
from dptdr.serving.packing import PromptRows

_PAGEOUT = 21
"""Linux' MADV_PAGEOUT: give pages back now; what is in them stays readable."""


class PromptFile:
    """The prompts of one bundle, mapped from disk; pages come in when they are read.

    Args:
        path: The safetensors file. The mapping holds on to it, also when it is deleted.
        key: Names the content.

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

    def lengths(self, name: str) -> tuple[int, int]:
        """Return attention and feed-forward rows of one prompt, from its shapes alone."""
        sizes = []
        for key in (name, f"{name}.ffn_biases"):
            held = key in self._file.keys()  # noqa: SIM118
            shape: Any = self._file.get_slice(key).get_shape() if held else [0]
            sizes.append(int(shape[3] if len(shape) == 5 else shape[-1]))
        return sizes[0], sizes[1]

    def rows(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one prompt, as the bundle names them."""
        return {
            key: self._file.get_tensor(key)
            for key in self._file.keys()  # noqa: SIM118
            if key.split(".")[0] == name
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskVersion:
    """One version of a task, ready to be asked for; never changes.

    Args:
        task: The task's name.
        version: The version's name.
        limits: Longest texts.
        prompts: For each side the prompt's name in the file, ``None`` for the bare backbone.
        fingerprints: For each side the fingerprint of the vectors.
        config: The prompt's settings; ``None`` for the bare backbone.
        file: The prompts; ``None`` for the bare backbone.
        manifest: What ``task.json`` says; ``None`` for the bare backbone.
        added: When it came.
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

    @property
    def name(self) -> str:
        """``task@version``."""
        return f"{self.task}@{self.version}"


class PromptCache:
    """Prompts in memory, least recently used out, within a budget of bytes.

    Args:
        budget_bytes: Most bytes kept. What a running batch holds is not counted.
        backbone: What the rows belong to; they lie where its weights do, in their number type.
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
        """Return one side's rows, from memory or from the mapped file.

        Args:
            version: The task's version.
            side: Query or passage.

        Returns:
            The rows, ``None`` where the side is encoded by the bare backbone.
        """
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
            # Another thread may have loaded the same rows: one object, so that rows group.
            found = self._rows.setdefault(key, made)
            self._rows.move_to_end(key)
            if found is made:
                self.bytes += made.bytes
                self._evict()
        return found

    def load(
        self, tensors: Mapping[str, Tensor], config: DeepPromptConfig, *, name: str
    ) -> PromptRows:
        """Return the rows of a file as attention and feed-forward layers take them.

        Raises:
            BundleError: If parts are missing.
            ValueError: If a shape does not fit the backbone.
        """
        rows, feed_forward = saved_rows(tensors, name, geometry=self._geometry, dim=self._dim)
        # Token-major and contiguous, as attention takes it, once instead of in every pass.
        keys, values = (
            rows[:, part].transpose(1, 2).to(self._device, self._dtype).contiguous()
            for part in (0, 1)
        )
        if feed_forward is not None:
            # A copy: the file's pages are given back.
            feed_forward = FeedForwardRows(
                *(x.to(self._device, self._dtype, copy=True) for x in feed_forward)
            )
        return PromptRows(
            keys,
            values,
            shift=rows.shape[3] if config.position == "shifted" else 0,
            feed_forward=feed_forward,
        )

    def _evict(self) -> None:
        while self.bytes > self.budget_bytes and len(self._rows) > 1:
            _, oldest = self._rows.popitem(last=False)
            self.bytes -= oldest.bytes

    def forget(self, keys: set[str]) -> None:
        """Drop the rows of files that no version uses any more."""
        with self._lock:
            for key in [key for key in self._rows if key[0] in keys]:
                self.bytes -= self._rows.pop(key).bytes

    def __len__(self) -> int:
        return len(self._rows)


def release(mapped: Tensor) -> None:
    """Give back the pages of rows that were read from a mapped file, where the system can.

    A hot prompt has a copy in attention's layout; the pages it was read from would count as memory
    of the process until something else needs them.

    Args:
        mapped: The rows; they can be read again afterwards.
    """
    if sys.platform != "linux" or mapped.device.type != "cpu":
        return
    first = mapped.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    size = mapped.data_ptr() + mapped.nbytes - first
    # Only advice: an older kernel refuses it, and nothing is lost.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), _PAGEOUT)
