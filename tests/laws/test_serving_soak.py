"""A minute of mixed load on two workers; benchmarks/serving_soak.py goes on for longer."""

import contextlib
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi")

from dptdr.model import Backbone
from dptdr.model.bundle import load_task
from helpers.server_process import running_server
from helpers.serving import WebServer, sentence, write_bundle

SECONDS = 60.0
TEXTS = [sentence(words, seed=words) for words in (1, 3, 8, 20, 40)]


class Load:
    """Clients of one server, and what they noticed."""

    def __init__(self, server, truth):
        self.server = server
        self.truth = truth
        self.ends = time.monotonic() + SECONDS
        self.killed_at = -100.0
        self.counts = Counter()
        self.wrong = []
        self.memory = []
        self.lock = threading.Lock()

    def goes_on(self):
        """Return whether there is more to do: a slow machine takes longer, up to a limit."""
        now = time.monotonic()
        enough = self.counts["killed"] == 2 and self.counts["administer"] > 3
        enough &= min(self.counts[name] for name in ("embed", "search")) > 50
        return now < self.ends or (not enough and now < self.ends + 150)

    def repeat(self, step, *, pause):
        """Return a client that does a step again and again."""

        def run():
            generator = random.Random(step.__name__)
            while self.goes_on():
                try:
                    with httpx.Client(base_url=self.server.address, timeout=30) as client:
                        for _ in range(20):
                            if self.goes_on():
                                self.note(step(client, generator), step)
                                time.sleep(pause)
                except httpx.TransportError as error:
                    # Only what a killed worker held in its hands may be lost.
                    just_killed = time.monotonic() - self.killed_at < 10
                    self.note("" if just_killed else f"{error!r}", step)
                except Exception as error:
                    self.note(f"{error!r}", step)

        return threading.Thread(target=run)

    def note(self, problem, step):
        with self.lock:
            self.counts[step.__name__] += 1
            if problem:
                self.wrong.append(f"{step.__name__}: {problem}")

    def embed(self, client, generator):
        name = generator.choice(["steady", "moving", "searched", "backbone"])
        side = generator.choice(["query", "passage"])
        places = generator.choices(range(len(TEXTS)), k=generator.choice([1, 2, 8]))
        body = {"model": f"{name}:{side}", "input": [TEXTS[place] for place in places]}
        reply = client.post("/v1/embeddings", json=body)
        if name == "moving" and reply.status_code == 404:
            return ""
        if reply.status_code != 200:
            return reply.text
        made = np.array([item["embedding"] for item in reply.json()["data"]])
        may = {"steady": ["one"], "backbone": ["backbone"]}.get(name, ["one", "two"])
        right = [self.truth[task][side][places] for task in may]
        return "" if any(np.allclose(made, r, atol=2e-5) for r in right) else f"wrong {name}"

    def search(self, client, generator):
        body = {"task": "searched", "text": generator.choice(TEXTS), "k": 3}
        reply = client.post("/v1/search", json=body)
        if reply.status_code != 200:
            return reply.text
        found = reply.json()
        pair = found["task"].partition("@")[2] == "2", found["index"].startswith("two")
        return "" if len(found["hits"]) == 3 and pair[0] == pair[1] else str(found)

    def administer(self, client, generator):
        """Exchange a task, and another one together with its index."""
        bundle = generator.choice(["one", "two"])
        index = generator.choice(["one-index", "one-again"])
        second = {"bundle": "two", "version": "2", "index": "two-index"}
        for method, path, body in (
            ("PUT", "/v1/tasks/moving", {"bundle": bundle}),
            ("PUT", "/v1/tasks/searched", second),
            ("POST", "/v1/tasks/searched/rollback", None),
            ("POST", "/v1/indexes", {"task": "searched", "index": index}),
            ("DELETE", "/v1/tasks/searched?version=2", None),
            ("DELETE", "/v1/tasks/moving", None),
        ):
            reply = client.request(method, path, json=body)
            # A change whose answer was lost with its worker is there already.
            if reply.status_code not in (200, 201, 204, 404, 409):
                return reply.text
        return ""

    def misuse(self, client, generator):
        """Hang up, dawdle, and send what must be refused."""
        del generator
        where = urlsplit(self.server.address)
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\n"
        body = b'{"model": "steady", "input": ["a", "b", "c"]}'
        whole = head + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        with contextlib.suppress(ConnectionError):
            with socket.create_connection((where.hostname, where.port)) as hanging_up:
                hanging_up.sendall(whole + body)
            with socket.create_connection((where.hostname, where.port)) as slow:
                slow.settimeout(20)
                slow.sendall(head)
                if slow.recv(100):
                    return "an unfinished header was answered"
        for content, status in ((b"{", 422), (b" " * 50_000, 413), (b'{"a": "\xff"}', 400)):
            headers = {"content-type": "application/json"}
            reply = client.post("/v1/embeddings", content=content, headers=headers)
            if reply.status_code != status:
                return f"expected {status}, got {reply.text}"
        return ""

    def kill(self, client, generator):
        """Kill the younger worker, and look at the memory of the older one."""
        del client, generator
        older, *younger = self.server.workers()
        status = Path(f"/proc/{older}/status").read_text()
        self.memory.append(int(status.split("VmRSS:")[1].split()[0]))
        if len(self.memory) in (4, 10) and younger:
            self.killed_at = time.monotonic()
            os.kill(younger[-1], signal.SIGKILL)
            self.counts["killed"] += 1
        return ""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two bundles with indexes, not served yet."""
    made = WebServer(tmp_path_factory.mktemp("soak"))
    tasks = made.folder / "tasks"
    write_bundle(tasks / "two", made.backbone, seed=2)
    for name, task in (("one-index", "one"), ("one-again", "one"), ("two-index", "two")):
        encoder = load_task(tasks / task, backbone=made.backbone)
        made.write_index(tasks / name, encoder, bm25=True)
    return made.folder


def test_two_workers_stay_right_and_small_whatever_clients_and_administrators_do(place):
    tasks = place / "tasks"
    backbone = Backbone.load(str(place / "tiny"))
    encoders = {name: load_task(tasks / name, backbone=backbone) for name in ("one", "two")}
    encoders["backbone"] = type(encoders["one"])(backbone)
    truth = {
        name: {"query": e.encode_queries(TEXTS), "passage": e.encode_passages(TEXTS)}
        for name, e in encoders.items()
    }
    one = tasks / "one"
    options = [
        "--workers",
        "2",
        "--self-check-interval",
        "50",
        "--receive-timeout",
        "2",
        "--max-body",
        "40",
    ]
    with running_server(
        f"steady={one}", f"searched={one}", "--tasks-folder", tasks, *options
    ) as server:
        index = {"task": "searched", "index": "one-index"}
        assert server.post("/v1/indexes", index).status_code == 200
        load = Load(server, truth)
        clients = [load.repeat(load.embed, pause=0.03) for _ in range(2)]
        clients += [load.repeat(load.search, pause=0.03), load.repeat(load.administer, pause=0.3)]
        clients += [load.repeat(load.misuse, pause=0.3), load.repeat(load.kill, pause=1.0)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        said = httpx.get(server.address + "/metrics").text

        assert load.wrong == []
        assert load.counts["killed"] == 2
        assert min(load.counts[name] for name in ("embed", "search")) > 50
        assert load.counts["administer"] > 3
        middle = max(load.memory[len(load.memory) // 3 : 2 * len(load.memory) // 3])
        assert max(load.memory[-3:]) < 1.05 * middle + 5_000
        assert 'dptdr_self_checks_total{outcome="passed"}' in said
        assert 'outcome="failed"' not in said
        assert "Traceback" not in "".join(server.lines)
        # Workers do not outlive the one that would replace them.
        left = server.workers()
        assert len(left) == 2
        server.process.kill()
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in left):
            assert time.monotonic() < deadline
            time.sleep(0.1)
