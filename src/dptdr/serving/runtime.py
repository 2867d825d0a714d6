"""The runtime of a worker: backbone, task registry, engine and indexes."""

import functools
import sys
import threading
from pathlib import Path

from dptdr.errors import DptdrError, ServingError, WrongPrompt
from dptdr.model.backbone import Backbone
from dptdr.search.rerank import Scorer
from dptdr.serving.auth import OPEN, USE_ONLY, KeyFile, Keyring
from dptdr.serving.engine.batching import BatchLimits
from dptdr.serving.engine.engine import Engine
from dptdr.serving.engine.results import Draining, EngineSettings
from dptdr.serving.forward import Forward
from dptdr.serving.metrics import Metrics
from dptdr.serving.rates import Rates
from dptdr.serving.settings import ServerSettings
from dptdr.serving.startup import say
from dptdr.serving.tasks.indexes import Indexes
from dptdr.serving.tasks.registry import TaskRegistry

CHECK_TEXTS = (
    "what is it?",
    "how do I find all files that are larger than a gigabyte",
    "The treatment depends on the kind of the disease, on its stage, and on the patient's age. "
    * 6,
)
"""Texts of different lengths for the self-check."""


class Runtime:
    """Everything a worker needs to serve requests."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        anyone = OPEN if settings.open_administration else USE_ONLY
        self._without_keys = Keyring(anyone=anyone)
        self._keys = None if settings.keys_file is None else KeyFile(settings.keys_file)
        self.rates = Rates(settings.burst_requests)
        self.draining = False
        self.failure: DptdrError | None = None
        self.scorer: Scorer | None = None
        self.scorer_lock = threading.Lock()
        self.reranking = 0
        self._engine: Engine | None = None

    @property
    def keyring(self) -> Keyring:
        """The current API keys."""
        return self._without_keys if self._keys is None else self._keys.keyring()

    def load(self) -> None:
        """Load everything, then set :attr:`loaded`.

        Raises:
            DptdrError: If the backbone, a task or an index cannot be loaded.
        """
        settings = self.settings
        if settings.worker_threads:
            import torch

            torch.set_num_threads(settings.worker_threads)
        say(f"loading the encoder {settings.backbone}")
        forward = _forward(settings)
        if settings.indexes:
            say(f"opening {len(settings.indexes)} indexes")
        indexes = Indexes(
            settings.indexes,
            keys=settings.index_keys,
            dim=forward.backbone.dim,
            probe=forward.backbone.probe,
            hybrid=settings.hybrid,
            folder=functools.partial(allowed_folder, folder=settings.tasks_folder, what="index"),
        )
        registry = TaskRegistry(
            forward,
            state=settings.state_folder,
            budget_bytes=settings.prompt_memory_mb * 1_000_000,
            indexes=indexes,
        )
        # A worker that replaces another one takes the tasks as they are now.
        with registry.catalogue.once(settings.start) as first:
            if first:
                if settings.tasks:
                    say(f"checking {len(settings.tasks)} tasks")
                kept = [registry.add_given(name, bundle) for name, bundle in settings.tasks]
                sys.stderr.writelines(f"{line}\n" for line in kept if line)
                final = settings.tasks_folder is None and not registry.broken
                _check_used(registry, final=final and not any(kept))
        if settings.cross_encoder is not None:
            from dptdr.search.rerank import cross_encoder

            say(f"loading the cross-encoder {settings.cross_encoder}")
            self.scorer = cross_encoder(settings.cross_encoder, raw=True)
        engine = Engine(
            registry,
            settings=EngineSettings(
                batch=BatchLimits(
                    batch_tokens=settings.batch_tokens,
                    queue_tokens=settings.queue_tokens,
                    cost=forward.layout,
                ),
                request_tokens=settings.max_tokens,
                threads=settings.worker_threads,
                check_every=settings.check_every,
            ),
            on_batch=self.metrics.saw_batch,
            on_check=self.metrics.saw_check,
        ).start()
        # The first forward passes are slow, so warm up, and verify them.
        say("checking vectors of mixed batches")
        report = engine.check(CHECK_TEXTS)
        if not report.passed:
            engine.stop(timeout_seconds=0.1)
            raise ServingError(
                f"self-check failed: vectors from mixed batches and from single rows differ by "
                f"{report.difference:.1e}; try --layout padded, and please report this"
            )
        self._engine = engine

    @property
    def loaded(self) -> bool:
        """Whether everything is loaded."""
        return self._engine is not None

    @property
    def ready(self) -> bool:
        """Whether the worker accepts requests."""
        return self.loaded and not self.draining

    @property
    def bare_only(self) -> bool:
        """Whether the server serves only the bare encoder."""
        return not self.settings.tasks and self.settings.tasks_folder is None

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            Draining: During startup.
        """
        if self._engine is None:
            raise Draining("the server is starting; try again shortly")
        return self._engine

    @property
    def registry(self) -> TaskRegistry:
        """The tasks.

        Raises:
            Draining: During startup.
        """
        return self.engine.registry

    def stop(self) -> bool:
        """Finish accepted requests; return whether all of them finished."""
        self.draining = True
        if self._engine is None:
            return True
        return self._engine.stop(timeout_seconds=self.settings.stop_seconds)


def _forward(settings: ServerSettings) -> Forward:
    backbone = Backbone.load(settings.backbone)
    if settings.onnx is None:
        return Forward(backbone, layout=settings.layout)
    from dptdr.serving.onnx.int8_forward import OnnxForward

    return OnnxForward(backbone, settings.onnx, threads=settings.worker_threads)


def _check_used(registry: TaskRegistry, *, final: bool) -> None:
    """Reject an index that no task can search, or warn if tasks may still be added."""
    for served in registry.indexes.unused(registry.versions()):
        message = (
            f"index '{served.name}': expected passage vectors of a served task, got fingerprint "
            f"{served.fingerprint} of '{served.index.origin.encoder}'; rebuild the index, or "
            "serve the task that made its vectors"
        )
        if final:
            raise WrongPrompt(message)
        sys.stderr.write(f"warning: {message}\n")


def allowed_folder(name: str, *, folder: Path | None, what: str) -> Path:
    """Resolve the path of a bundle or index named in a request.

    Args:
        name: Name of a folder in the tasks folder, not a path.
        folder: The tasks folder.
        what: ``bundle`` or ``index``, for messages.

    Raises:
        ServingError: If there is no tasks folder, or the name points outside it or cannot be read.
    """
    if folder is None:
        raise ServingError(
            "this server does not accept new tasks; start it with --tasks-folder to allow "
            "bundles and indexes from one folder"
        )
    try:
        return _inside(name, folder.resolve(), what=what)
    # A name may be too long for the file system, or hold a lone surrogate.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not valid Unicode"
        raise ServingError(f"{what} {name[:100]!r}: cannot be opened ({reason})") from None


def _inside(name: str, root: Path, *, what: str) -> Path:
    plain = name and name not in (".", "..") and "\0" not in name
    if not plain or "/" in name or "\\" in name or (root / name).resolve().parent != root:
        raise ServingError(
            f"{what} {name[:100]!r}: expected the name of a folder in the tasks folder, got a path"
        )
    if not (root / name).is_dir():
        raise ServingError(f"{what} '{name[:100]}': no such folder in the tasks folder")
    if (root / name).is_symlink() or any(file.is_symlink() for file in (root / name).iterdir()):
        raise ServingError(
            f"{what} '{name[:100]}': expected regular files, got a link; copy its target instead"
        )
    return root / name
