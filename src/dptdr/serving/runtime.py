"""What a worker holds while it runs: backbone, registry, engine, indexes; and how it comes up."""

import threading
from pathlib import Path

from dptdr.errors import ConfigError, DptdrError, ServingError
from dptdr.model.backbone import Backbone
from dptdr.model.bundle import read_manifest
from dptdr.serving.engine.batching import BatchLimits
from dptdr.serving.engine.engine import Engine
from dptdr.serving.engine.forward import Forward
from dptdr.serving.engine.requests import Draining, EngineSettings
from dptdr.serving.http.auth import OPEN, USE_ONLY, Keyring
from dptdr.serving.http.rates import Rates
from dptdr.serving.metrics import Metrics
from dptdr.serving.searching import Searcher
from dptdr.serving.settings import ServerSettings
from dptdr.serving.tasks.registry import TaskRegistry

CHECK_TEXTS = (
    "what is it?",
    "how do I find all files that are larger than a gigabyte",
    "The treatment depends on the kind of the disease, on its stage, and on the patient's age. "
    * 6,
)
"""Texts of different lengths for a server's self-check."""


class Runtime:
    """One worker, from start to end.

    Args:
        settings: What the server was told.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        anyone = OPEN if settings.open_administration else USE_ONLY
        self.keyring = (
            Keyring(anyone=anyone)
            if settings.keys_file is None
            else Keyring.read(settings.keys_file)
        )
        self.rates = Rates(settings.burst_requests)
        self.draining = False
        self.failure: DptdrError | None = None
        self._bank: TaskRegistry | None = None
        self._engine: Engine | None = None
        self._searcher: Searcher | None = None
        self._loaded = threading.Event()

    def load(self) -> None:
        """Load everything; afterwards :attr:`ready` is true.

        Raises:
            DptdrError: If the backbone, a task or an index cannot be loaded.
        """
        settings = self.settings
        if settings.threads:
            import torch

            torch.set_num_threads(settings.threads)
        forward = _forward(settings)
        registry = TaskRegistry(
            forward, state=settings.state_folder, budget_bytes=settings.prompt_memory_bytes
        )
        for name, bundle in settings.tasks:
            registry.add(name, bundle, replace=True, reuse=True)
        searcher = Searcher(settings.indexes, hybrid=settings.hybrid)
        searcher.check(registry.backbone.dim)
        engine = Engine(
            registry,
            settings=EngineSettings(
                batch=BatchLimits(
                    batch_tokens=settings.batch_tokens,
                    queue_tokens=settings.queue_tokens,
                    cost=forward.layout,
                ),
                request_tokens=settings.max_tokens,
                threads=settings.threads,
                check_every=settings.check_every,
            ),
            on_batch=self.metrics.saw_batch,
            on_check=self.metrics.saw_check,
        ).start()
        # The first passes of a process are slow, and must be right.
        report = engine.check(CHECK_TEXTS)
        if not report.passed:
            engine.stop(timeout_seconds=0.1)
            raise ServingError(
                f"self-check failed: mixed vectors differ by {report.difference:.1e} from those "
                "of single rows; try --layout padded, and please report this"
            )
        self._bank, self._engine, self._searcher = registry, engine, searcher
        self._loaded.set()

    @property
    def loaded(self) -> bool:
        """Whether everything is there."""
        return self._loaded.is_set()

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self.loaded and not self.draining

    @property
    def bare_only(self) -> bool:
        """Whether the server was started for the bare encoder and can take no task."""
        return not self.settings.tasks and self.settings.tasks_folder is None

    @property
    def registry(self) -> TaskRegistry:
        """The tasks.

        Raises:
            Draining: While starting.
        """
        if self._bank is None:
            raise Draining("the server is starting; try again in a moment")
        return self._bank

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            Draining: While starting.
        """
        if self._engine is None:
            raise Draining("the server is starting; try again in a moment")
        return self._engine

    @property
    def searcher(self) -> Searcher:
        """The indexes.

        Raises:
            Draining: While starting.
        """
        if self._searcher is None:
            raise Draining("the server is starting; try again in a moment")
        return self._searcher

    def stop(self) -> bool:
        """Finish what was taken; return whether all of it was."""
        self.draining = True
        if self._engine is None:
            return True
        return self._engine.stop(timeout_seconds=self.settings.stop_seconds)


def _forward(settings: ServerSettings) -> Forward:
    backbone = Backbone.load(settings.backbone)
    if settings.onnx is None:
        return Forward(backbone, layout=settings.layout or None)
    from dptdr.serving.onnx.forward import OnnxForward

    return OnnxForward(backbone, settings.onnx, threads=settings.threads)


def allowed_bundle(name: str, *, folder: Path | None) -> Path:
    """Return the bundle that a request names, if it lies in the allowed folder.

    Args:
        name: Name of a bundle inside the folder, never a path.
        folder: The allowed folder.

    Returns:
        Where the bundle lies.

    Raises:
        ServingError: If there is no allowed folder, or the name leads out of it.
    """
    if folder is None:
        raise ServingError(
            "this server takes no new tasks; start it with --tasks-folder to allow the bundles "
            "in one folder"
        )
    root = folder.resolve()
    plain = name and name not in (".", "..") and "\0" not in name
    if not plain or "/" in name or "\\" in name or (root / name).resolve().parent != root:
        raise ServingError(
            f"bundle {name[:100]!r}: expected the name of a folder inside the tasks folder, not "
            "a path"
        )
    if not (root / name).is_dir():
        raise ServingError(f"bundle '{name[:100]}': there is no such folder in the tasks folder")
    if (root / name).is_symlink() or any(file.is_symlink() for file in (root / name).iterdir()):
        raise ServingError(
            f"bundle '{name[:100]}': expected plain files, got a link; copy what it points to"
        )
    return root / name


def task_name(bundle: Path) -> str:
    """Return the name under which a bundle is served if none is given."""
    return read_manifest(bundle).name


def backbone_of(tasks: tuple[tuple[str, Path], ...]) -> str:
    """Return the backbone that the first task names.

    Raises:
        ConfigError: If there is no task.
    """
    if not tasks:
        raise ConfigError("expected at least one task, or --backbone for the bare encoder")
    return read_manifest(tasks[0][1]).backbone
