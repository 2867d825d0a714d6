"""Mixed load on several workers while tasks and indexes are replaced; every answer is checked.

    python benchmarks/serving_soak.py --minutes 1
    python benchmarks/serving_soak.py --out results/serving.jsonl

Clients ask for vectors of many tasks, sides and lengths, and compare each with the vector of the
task alone, computed beforehand without a server; others search, and compare hits with the best by
those vectors. Meanwhile tasks are added, replaced, rolled back and removed, one of them together
with its index; a worker is killed (SIGKILL) now and then, clients hang up or send slowly, and
invalid requests come. Ends with code 1 if an answer is wrong, if an unexpected error comes, or if
memory grows. The oldest worker is never killed, so that its memory is seen to the end.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import _lib

TOLERANCE = 1e-5
PATIENCE = 180.0
"""Seconds that a client waits; the machine may be busy with other things."""

_JUDGED_SAMPLES = 30
"""Samples of memory, one every ten seconds, from which on it must be flat."""

SEARCHED = {"searched@1": ("b6", ("i6", "i6-again")), "searched@next": ("b7", ("i7",))}
"""Versions of the task that is searched: their bundle, and the indexes that belong to it."""

WORDS = ["fever", "rain", "list", "files", "boat", "river", "drug", "dose", "copy", "heart"]


def texts(count: int) -> list[str]:
    """Return texts of 1 to 150 words, short ones more often."""
    generator = random.Random(0)
    return [
        " ".join(generator.choice(WORDS) for _ in range(int(1 + 150 * generator.random() ** 3)))
        for _ in range(count)
    ]


class Truth:
    """Bundles, and the vectors that each makes alone.

    Args:
        folder: Where bundles are written.
        bundles: How many.
        texts: What is asked.
    """

    def __init__(self, folder: Path, *, bundles: int, texts: list[str]) -> None:
        import torch

        from dptdr.model import Backbone, Encoder
        from dptdr.model.bundle import save_task

        torch.set_num_threads(1)
        backbone = Backbone.load("minilm")
        self.texts = texts
        self.vectors: dict[str, dict[str, np.ndarray]] = {}
        kinds = ["tied", "untied", "query-only"]
        for number in range(bundles):
            rows = {"prompt_length": 4 + 9 * (number % 5), "random_scale": 0.4}
            encoder = _lib.prompted(backbone, seed=number, sharing=kinds[number % 3], **rows)
            save_task(folder / f"b{number}", encoder)
            self._know(f"b{number}", encoder)
            for _, indexes in (held for held in SEARCHED.values() if held[0] == f"b{number}"):
                for index in indexes:
                    self._write_index(folder, index, encoder)
        self._know("backbone", Encoder(backbone))

    def _write_index(self, folder: Path, name: str, encoder: Any) -> None:
        """Write an index of the texts, each of which is a passage."""
        from dptdr.search.indexes.building import BuildSettings, build_index
        from dptdr.search.vectors.encoding import encode_data

        data = folder.parent / "data"
        data.mkdir(exist_ok=True)
        lines = [{"_id": str(n), "title": "", "text": text} for n, text in enumerate(self.texts)]
        (data / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        vectors = encode_data(encoder, data, out=folder.parent / f"{name}-vectors")
        settings = BuildSettings(bm25=True)
        build_index(vectors, out=folder / name, index_type="exact", settings=settings)

    def _know(self, name: str, encoder: Any) -> None:
        self.vectors[name] = {
            "query": encoder.encode_queries(self.texts),
            "passage": encoder.encode_passages(self.texts),
        }


class Soak:
    """One run.

    Args:
        address: The server.
        truth: What is right.
        seconds: How long.
        rate: Most requests for vectors per second, of all clients together.
        clients: How many share that rate.
    """

    def __init__(
        self, address: str, truth: Truth, *, seconds: float, rate: float, clients: int
    ) -> None:
        self.address = address
        self.truth = truth
        self.pause = clients / rate
        self.began = time.monotonic()
        self.memory: list[float] = []
        self.milliseconds: list[float] = []
        self.end = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.unasked: list[str] = []
        self.wrong: list[str] = []
        self.largest = 0.0
        self.lock = threading.Lock()
        # Which bundle a fixed name may mean: steady tasks never change, moving ones do.
        self.steady = {f"s{n}": f"b{n}" for n in range(6)}
        self.killed_at = -1e9

    def running(self) -> bool:
        """Return whether there is time left."""
        return time.monotonic() < self.end

    def count(self, what: str) -> None:
        """Count an event."""
        with self.lock:
            self.counts[what] += 1

    def add(self, client: httpx.Client, task: str, bundle: str, method: str = "POST") -> int:
        """Add or replace a task."""
        path = "/v1/tasks" if method == "POST" else f"/v1/tasks/{task}"
        body = {"bundle": bundle} | ({"task": task} if method == "POST" else {})
        return client.request(method, path, json=body).status_code

    def compare(self, found: Any, bundle: str, side: str, places: list[int]) -> bool:
        """Compare vectors with those of a bundle alone."""
        made = np.array([item["embedding"] for item in found["data"]], dtype=np.float32)
        right = self.truth.vectors[bundle][side][places]
        difference = float(np.abs(made - right).max())
        if difference <= TOLERANCE:
            with self.lock:
                self.largest = max(self.largest, difference)
            return True
        return False

    def ask(self, seed: int) -> None:
        """Ask for vectors of steady and moving tasks, and check all of them."""
        generator = random.Random(seed)
        client = httpx.Client(base_url=self.address, timeout=PATIENCE)
        due = time.monotonic() + self.pause * generator.random()
        while self.running():
            time.sleep(max(0.0, due - time.monotonic()))
            # Who is late does not catch up: a slow server is not asked more.
            due = max(due, time.monotonic() - self.pause) + self.pause
            moving = generator.random() < 0.3
            names = [f"m{n}" for n in range(4)] if moving else [*self.steady, "backbone"]
            name, side = generator.choice(names), generator.choice(["query", "passage"])
            count = len(self.truth.texts)
            places = [generator.randrange(count) for _ in range(generator.choice([1, 1, 2, 8]))]
            body = {"model": f"{name}:{side}", "input": [self.truth.texts[i] for i in places]}
            began = time.monotonic()
            try:
                reply = client.post("/v1/embeddings", json=body)
            except httpx.TransportError as error:
                self.broken(f"{type(error).__name__}: {error}")
                continue
            if reply.status_code == 404 and moving:
                self.count("moving task was away (404)")
                continue
            if reply.status_code != 200:
                self.complain(f"{reply.status_code}: {reply.text[:200]}")
                continue
            self.count("answers")
            with self.lock:
                self.counts["vectors"] += len(places)
                self.milliseconds.append(1000 * (time.monotonic() - began))
            may = [f"b{n}" for n in range(6, 12)] if moving else [self.steady.get(name, name)]
            if not any(self.compare(reply.json(), bundle, side, places) for bundle in may):
                self.wrong.append(f"{reply.json()['model']} {side} {places}")

    def search(self, seed: int) -> None:
        """Search the task whose bundle and index are replaced together, and check all hits."""
        generator = random.Random(seed)
        client = httpx.Client(base_url=self.address, timeout=PATIENCE)
        while self.running():
            time.sleep(self.pause)
            place = generator.randrange(len(self.truth.texts))
            fusion = generator.choice([None, None, "rrf"])
            body = {"task": "searched", "text": self.truth.texts[place], "k": 5, "fusion": fusion}
            try:
                reply = client.post("/v1/search", json=body)
            except httpx.TransportError as error:
                self.broken(f"search: {error}")
                continue
            if reply.status_code != 200:
                self.complain(f"search: {reply.status_code}: {reply.text[:200]}")
                continue
            self.count("searches")
            found = reply.json()
            bundle, indexes = SEARCHED[found["task"]]
            vectors = self.truth.vectors[bundle]
            best = np.sort(vectors["passage"] @ vectors["query"][place])[::-1][:5]
            scores = [hit["score"] for hit in found["hits"]]
            right = fusion is not None or np.allclose(scores, best, atol=1e-4)
            if found["index"] not in indexes or len(scores) != 5 or not right:
                self.wrong.append(f"{found['task']} in {found['index']}, text {place}")

    def exchange(self) -> None:
        """Replace the searched task and its index all along, together and apart."""
        client = httpx.Client(base_url=self.address, timeout=PATIENCE)
        while self.running():
            for method, path, body in (
                ("PUT", "/v1/tasks/searched", {"bundle": "b7", "version": "next", "index": "i7"}),
                ("PUT", "/v1/tasks/searched/default", {"version": "1"}),
                ("POST", "/v1/indexes", {"task": "searched", "index": "i6-again"}),
                ("DELETE", "/v1/tasks/searched?version=next", None),
                ("POST", "/v1/indexes", {"task": "searched", "index": "i6"}),
            ):
                try:
                    status = client.request(method, path, json=body).status_code
                except httpx.TransportError as error:
                    self.broken(f"{method} {path}: {error}")
                    continue
                self.count(f"exchange: {status}")
                # What a killed worker had done already is refused, or not there any more.
                if status not in (200, 204, 404, 409):
                    self.complain(f"{method} {path} gave {status}")
                time.sleep(0.5)

    def broken(self, what: str) -> None:
        """A connection broke: expected where a worker was killed a moment ago."""
        if time.monotonic() - self.killed_at < 10:
            self.count("connections lost with a killed worker")
        else:
            self.complain(what)

    def complain(self, what: str) -> None:
        """Note an error that nobody asked for."""
        with self.lock:
            self.unasked.append(what)

    def administer(self) -> None:
        """Add, replace, roll back and remove moving tasks all along."""
        generator = random.Random(99)
        client = httpx.Client(base_url=self.address, timeout=PATIENCE)
        while self.running():
            task, bundle = f"m{generator.randrange(4)}", f"b{generator.randrange(6, 12)}"
            action = generator.choice(["add", "replace", "replace", "rollback", "remove"])
            try:
                if action == "add":
                    status = self.add(client, task, bundle)
                elif action == "replace":
                    status = self.add(client, task, bundle, "PUT")
                elif action == "rollback":
                    status = client.post(f"/v1/tasks/{task}/rollback").status_code
                else:
                    status = client.delete(f"/v1/tasks/{task}").status_code
            except httpx.TransportError as error:
                self.broken(f"{action}: {error}")
                continue
            self.count(f"{action}: {status}")
            if status not in (200, 201, 204, 404, 409):
                self.complain(f"{action} gave {status}")
            time.sleep(1.0)

    def disturb(self) -> None:
        """Send what must be refused, and hang up in the middle."""
        expected = [
            ({"json": {"model": "none", "input": "x"}}, 404),
            ({"json": {"model": "s0", "input": ["x"] * 3000}}, 422),
            ({"json": {"model": "s0", "input": "x" * 1_000_000}}, 422),
            ({"json": {"model": "s0:query", "input": ""}}, 200),
            ({"content": b'{"model": "s0", "input": "\xff"}'}, 400),
            ({"content": b" " * 9_000_000}, 413),
        ]
        client = httpx.Client(base_url=self.address, timeout=PATIENCE)
        host, port = self.address.removeprefix("http://").split(":")
        headers = {"content-type": "application/json"}
        while self.running():
            for request, status in expected:
                try:
                    reply = client.post("/v1/embeddings", headers=headers, **request)
                except httpx.TransportError as error:
                    # A body that is too long may be cut off while it is still being sent.
                    if status != 413:
                        self.broken(str(error))
                    continue
                self.count(f"refused as asked: {reply.status_code}")
                if reply.status_code != status:
                    self.complain(f"expected {status}, got {reply.status_code}: {reply.text[:200]}")
            for bundle, task in (("damaged", "bad"), ("foreign", "bad"), ("../b1", "bad")):
                with contextlib.suppress(httpx.TransportError):
                    status = self.add(client, task, bundle)
                    self.count(f"bundle refused: {status}")
                    if status not in (409, 422):
                        self.complain(f"bundle '{bundle}' gave {status}")
            body = json.dumps({"model": "s1:query", "input": self.truth.texts[:32]}).encode()
            head = (
                "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as wire:
                wire.sendall(head.encode() + body)
                time.sleep(0.05)
                self.count("hung up")
            with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as wire:
                wire.sendall(b"POST /v1/embeddings HTTP/1.1\r\n")
                wire.settimeout(PATIENCE)
                if wire.recv(1):
                    self.complain("an unfinished header was answered")
                self.count("slow clients sent away")
            time.sleep(5.0)

    def kill(self, supervisor: int, *, every: float) -> None:
        """Kill a worker now and then."""
        # The first death comes when half of the first period is over.
        pause = every / 2
        while self.running():
            time.sleep(min(pause, max(0.0, self.end - time.monotonic())))
            pause = every
            if self.end - time.monotonic() < 20:
                return
            victims = workers(supervisor)[1:]
            if victims:
                self.killed_at = time.monotonic()
                os.kill(random.choice(victims), signal.SIGKILL)
                self.count("workers killed")


def workers(supervisor: int) -> list[int]:
    """Return the server's worker processes, oldest first."""
    found: list[tuple[int, int]] = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            parent, started = int(fields[1]), int(fields[19])
            command = (folder / "cmdline").read_bytes()
            if (
                parent == supervisor
                and b"spawn_main" in command
                and b"resource_tracker" not in command
            ):
                found.append((started, int(folder.name)))
    return [pid for _, pid in sorted(found)]


def resident(pid: int) -> float:
    """Return a process's memory in MB."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1000
    return 0.0


def write_bad_bundles(folder: Path) -> None:
    """Write a damaged bundle and one of another backbone, to be refused."""
    import shutil

    for name in ("damaged", "foreign"):
        shutil.copytree(folder / "b0", folder / name)
    weights = folder / "damaged" / "prompt.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    manifest = folder / "foreign" / "task.json"
    values = json.loads(manifest.read_text()) | {"backbone_fingerprint": "0" * 64}
    manifest.write_text(json.dumps(values))


@contextlib.contextmanager
def server(folder: Path, *, worker_count: int, log: Path) -> Any:
    """Give a running server: process and address."""
    tasks = [f"s{n}={folder / f'b{n}'}" for n in range(6)] + [f"searched={folder / 'b6'}"]
    with log.open("w") as out:
        options = (
            f"--port 0 --threads 1 --workers {worker_count} --self-check-interval 20 --timeout 120"
        )
        options += " --receive-timeout 5"
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dptdr", "serve", *tasks, *options.split()),
                *("--tasks-folder", str(folder)),
            ],
            stderr=out,
        )
    try:
        while True:
            found = re.search(r"listening on (http://\S+)", log.read_text())
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            with contextlib.suppress(httpx.TransportError):
                if found and httpx.get(found[1] + "/health", timeout=120).status_code == 200:
                    break
            time.sleep(0.1)
        yield process, found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        # What was found is worth more than an orderly end on a machine that is busy.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        process.kill()


def main() -> None:
    """Run, report, and say whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    _lib.add_options(parser, minutes=30.0, clients=4, workers=2, kill_every_seconds=60.0)
    _lib.add_options(parser, rate=(6.0, "requests for vectors per second"))
    _lib.add_options(parser, texts=(60, "different texts that are asked"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bundles"
        truth = Truth(folder, bundles=12, texts=texts(options.texts))
        write_bad_bundles(folder)
        log = Path(name) / "server.log"
        with server(folder, worker_count=options.workers, log=log) as (process, address):
            soak = Soak(
                address,
                truth,
                seconds=60 * options.minutes,
                rate=options.rate,
                clients=options.clients,
            )
            report = {
                "command": "python benchmarks/serving_soak.py " + " ".join(sys.argv[1:]),
                "began": began,
                "commit": _lib.commit(),
                "machine": _lib.machine(),
                "seed": 0,
                **{name: value for name, value in vars(options).items() if name != "out"},
            }
            run(soak, process.pid, options, report=report)
            metrics = httpx.get(address + "/metrics", timeout=PATIENCE).text
            report |= summary(soak, metrics) | {
                "tracebacks in the log": log.read_text().count("Traceback")
            }
            write(report, options.out)
    print(json.dumps(report, indent=1))
    sys.exit(0 if report["all well"] else 1)


def write(report: dict[str, Any], out: Path | None) -> None:
    """Write what is known so far."""
    if out is not None:
        _lib.put_records(out, [{"part": "soak", **report}], ("part",))


def run(
    soak: Soak, supervisor: int, options: argparse.Namespace, *, report: dict[str, Any]
) -> None:
    """Let all clients go; watch the oldest worker's memory every ten seconds; report meanwhile."""
    jobs: list[Any] = [lambda n=n: soak.ask(n) for n in range(options.clients)]
    index = {"task": "searched", "index": "i6"}
    httpx.post(f"{soak.address}/v1/indexes", json=index, timeout=PATIENCE).raise_for_status()
    jobs += [soak.administer, soak.disturb, soak.exchange, lambda: soak.search(-1)]
    jobs.append(lambda: soak.kill(supervisor, every=options.kill_every_seconds))

    def guarded(job: Any) -> None:
        try:
            job()
        except Exception as error:
            # A client that ends early would make the run look better than it was.
            soak.complain(f"a client of this program failed: {error!r}")

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    while soak.running():
        time.sleep(min(10.0, max(0.1, soak.end - time.monotonic())))
        soak.memory.append(resident(workers(supervisor)[0]))
        if len(soak.memory) % 6 == 0:
            with soak.lock:
                write(report | summary(soak, ""), options.out)
    for thread in threads:
        thread.join()


def summary(soak: Soak, metrics: str) -> dict[str, Any]:
    """Return what came out, and whether all was well."""
    memory = soak.memory or [0.0]
    checks = {
        outcome: sum(
            float(line.split()[-1])
            for line in metrics.splitlines()
            if line.startswith(f'dptdr_self_checks_total{{outcome="{outcome}"}}')
        )
        for outcome in ("passed", "failed")
    }
    third = max(1, len(memory) // 3)
    early, late = max(memory[third : 2 * third] or memory), max(memory[-third:])
    # A server grows until it has met all lengths; a short run says nothing.
    flat = len(memory) < _JUDGED_SAMPLES or late <= 1.05 * early + 5
    times = sorted(soak.milliseconds) or [0.0]
    return {
        "minutes done": round((time.monotonic() - soak.began) / 60, 1),
        "counts": dict(sorted(soak.counts.items())),
        "wrong vectors": len(soak.wrong),
        "the first of them": soak.wrong[:5],
        "largest difference": soak.largest,
        "errors not asked for": len(soak.unasked),
        "the first of those": soak.unasked[:5],
        "self-checks": checks,
        "milliseconds per request": {
            "median": round(times[len(times) // 2], 1),
            "95 %": round(times[int(0.95 * len(times))], 1),
        },
        "memory of the oldest worker, MB": {
            "every five minutes": [round(value) for value in memory[::30]],
            "most, second third": round(early, 1),
            "most, last third": round(late, 1),
        },
        "memory flat": flat,
        "all well": not soak.wrong and not soak.unasked and not checks["failed"] and flat,
    }


if __name__ == "__main__":
    main()
