"""Bundles and prompts for the serving tests."""

import contextlib
import copy
import json
import random
import tempfile
import threading
import time
from pathlib import Path

import torch

from dptdr.config.methods import DeepPromptConfig
from dptdr.model import Backbone, DeepPrompt, Encoder, Limits
from dptdr.model.bundle import save_task
from dptdr.model.methods import DeepPromptMethod
from dptdr.model.packing import PromptRows
from dptdr.model.prompt_rows import FeedForwardRows
from helpers.tiny import WORDS


def random_rows(backbone: Backbone, length: int, *, ffn_length: int = 0, seed: int = 0):
    """Prompt rows of a served task."""
    geometry = backbone.geometry
    generator = torch.Generator().manual_seed(seed)
    shape = (2, geometry.layers, length, geometry.heads, geometry.head_dim)
    keys, values = torch.randn(shape, generator=generator)
    feed_forward = None
    if ffn_length:
        shape = (geometry.layers, 1, ffn_length, backbone.dim)
        feed_forward = FeedForwardRows(
            torch.randn(shape, generator=generator) * 0.3,
            torch.randn(shape[:3], generator=generator) * 0.3,
            torch.randn(shape, generator=generator) * 0.3,
        )
    return PromptRows(keys, values, feed_forward=feed_forward)


def sentence(words: int, *, seed: int = 0) -> str:
    """A text of so many words."""
    generator = random.Random(seed)
    return " ".join(generator.choice(WORDS) for _ in range(words))


def task_encoder(
    backbone: Backbone, *, seed: int = 0, scale: float = 1.0, limits: Limits | None = None, **config
) -> Encoder:
    """An encoder with a random deep prompt: as good as a trained one for equality."""
    settings = {"prompt_length": 4, "initialisation": "random"} | config
    method = DeepPromptMethod(backbone, DeepPromptConfig(**settings), seed=seed)
    for number, name in enumerate(sorted(method.module)):
        old: DeepPrompt = method.module[name]
        generator = torch.Generator().manual_seed(1000 * seed + number)
        rows = torch.randn(old.rows().shape, generator=generator) * scale
        ffn_length = settings.get("ffn_length") or 0
        made = random_rows(backbone, 0, ffn_length=ffn_length, seed=1000 * seed + number)
        method.module[name] = DeepPrompt(
            rows,
            feed_forward=made.feed_forward,
        )
    return Encoder(backbone, method=method, limits=limits)


def write_bundle(path: Path, backbone: Backbone, **options) -> Path:
    """Write a bundle with a random deep prompt."""
    save_task(path, task_encoder(backbone, **options), name=path.name)
    return path


class Held:
    """An engine whose batches wait until they are let go, so that something waits behind them.

    Args:
        engine: The engine.
        batches: How many batches are held; later ones pass.
    """

    def __init__(self, engine, *, batches: int = 1):
        self.engine = engine
        self.entered = threading.Event()
        self.release = threading.Event()
        self._real = engine.forward
        self._left = batches
        self._copy = copy.copy(engine.forward)
        self._copy.vectors = self._vectors

    def _vectors(self, rows, **options):
        self._left -= 1
        if self._left >= 0:
            self.entered.set()
            assert self.release.wait(60)
        return self._real.vectors(rows, **options)

    def __enter__(self):
        self.engine.forward = self._copy
        return self

    def __exit__(self, *_):
        self.release.set()
        self.engine.forward = self._real


def wait_for(condition, *, seconds: float = 60.0):
    """Wait until something is true; a busy machine may take its time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class EventList(list):
    """A logger that keeps what it is told."""

    def info(self, event, **facts):
        self.append({"event": event, **facts})

    error = info

    def debug(self, event, **facts):
        del event, facts


class WebServer:
    """A server in this process, with a tiny backbone, two tasks and an index."""

    def __init__(self, folder: Path, **options):
        from fastapi.testclient import TestClient

        from dptdr.serving.http.app import build_app
        from dptdr.serving.runtime import Runtime
        from dptdr.serving.settings import ServerSettings
        from helpers.tiny import save_tiny

        self.folder = folder
        self.log = EventList()
        self.place = save_tiny(folder / "tiny")
        self.backbone = Backbone.load(str(self.place))
        self.bare = Encoder(self.backbone)
        self._write_tasks()
        self._write_indexes()
        settings = {
            "backbone": str(self.place),
            "state_folder": folder / "state",
            "tasks": (("one", folder / "tasks" / "one"), ("two", folder / "tasks" / "untied")),
            "tasks_folder": folder / "tasks",
            "indexes": (("one", folder / "one-index"), ("", folder / "bare-index")),
            "max_body_kb": 100,
            "max_texts": 32,
            "max_text_characters": 500,
        } | options
        self.runtime = Runtime(ServerSettings(**settings))
        self.app = build_app(self.runtime, logger=self.log)
        self.client = TestClient(
            self.app, base_url="http://localhost", raise_server_exceptions=False
        )

    @classmethod
    @contextlib.contextmanager
    def start(cls, folder: Path, **options):
        """Give a server that is ready."""
        server = cls(folder, **options)
        with server.client:
            server.wait()
            yield server

    def wait(self, seconds: float = 60.0):
        """Wait until texts are encoded."""
        deadline = time.monotonic() + seconds
        while self.client.get("/health").status_code != 200:
            assert self.runtime.failure is None, self.runtime.failure
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _write_tasks(self):
        from helpers.tiny import tiny_backbone

        tasks = self.folder / "tasks"
        write_bundle(tasks / "one", self.backbone, seed=1)
        save_task(
            tasks / "untied",
            task_encoder(self.backbone, seed=2, sharing="untied"),
            training={"matryoshka": [8, 16]},
        )
        self.fresh = task_encoder(self.backbone, seed=3)
        save_task(tasks / "fresh", self.fresh)
        write_bundle(tasks / "query-only", self.backbone, seed=4, sharing="query-only")
        write_bundle(tasks / "foreign", tiny_backbone("bert", seed=9), seed=5)
        write_bundle(tasks / "damaged", self.backbone, seed=6)
        weights = tasks / "damaged" / "prompt.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(bytes(data))
        (tasks / "empty").mkdir()
        (tasks / "link").symlink_to(self.place)

    def _write_indexes(self):
        from dptdr.records import Passage

        texts = [sentence(5 + n, seed=n) for n in range(12)]
        texts[5] += " zebra"
        self.passages = [Passage(f"p{n}", text, f"title {n}") for n, text in enumerate(texts)]
        data = self.folder / "data"
        data.mkdir()
        lines = [
            {"_id": p.id, "title": p.title, "text": p.text, "metadata": {"kind": kind}}
            for p, kind in zip(self.passages, ["even", "odd"] * 6, strict=True)
        ]
        (data / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for name, encoder in (("one", self.encoder("one")), ("bare", self.bare)):
            self.write_index(self.folder / f"{name}-index", encoder)

    def write_index(self, out: Path, encoder: Encoder, **settings):
        """Write an exact index of the passages."""
        from dptdr.search.indexes.building import BuildSettings, build_index
        from dptdr.search.vectors.encoding import encode_data

        at = Path(tempfile.mkdtemp(dir=self.folder)) / "vectors"
        vectors = encode_data(encoder, self.folder / "data", out=at)
        build_index(vectors, out=out, index_type="exact", settings=BuildSettings(**settings))

    def encoder(self, task: str) -> Encoder:
        """Return a task's own encoder."""
        from dptdr.model.bundle import load_task

        folder = {"one": "one", "two": "untied"}[task]
        return load_task(self.folder / "tasks" / folder, backbone=self.backbone)

    @contextlib.contextmanager
    def listening(self):
        """Give the address of the same application behind a real socket."""
        import uvicorn

        config = uvicorn.Config(
            self.app, host="127.0.0.1", port=0, lifespan="off", log_level="error"
        )
        server = uvicorn.Server(config)
        socket = config.bind_socket()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
            socket.close()

    def post_in_thread(self, address: str, body: dict) -> threading.Thread:
        """Ask for vectors from a thread of its own."""
        import httpx

        thread = threading.Thread(
            target=httpx.post, args=(f"{address}/v1/embeddings",), kwargs={"json": body}
        )
        thread.start()
        return thread
