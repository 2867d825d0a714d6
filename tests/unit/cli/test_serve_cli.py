"""``dptdr serve`` as users start it: processes, signals, ports."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")

import httpx

PROGRAM = [sys.executable, "-m", "dptdr", "serve"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny backbone, two bundles for it, one for another."""
    from dptdr.model import Backbone
    from helpers.serving import write_bundle
    from helpers.tiny import save_tiny

    folder = tmp_path_factory.mktemp("serve")
    backbone = Backbone.load(str(save_tiny(folder / "tiny")))
    write_bundle(folder / "tasks" / "one", backbone, seed=1)
    write_bundle(folder / "tasks" / "two", backbone, seed=2)
    other = Backbone.load(str(save_tiny(folder / "other", seed=5)))
    write_bundle(folder / "tasks" / "foreign", other, seed=3)
    return folder


def expected(place, task, texts):
    from dptdr.model.bundle import load_task

    return load_task(place / "tasks" / task).encode_queries(texts)


class Process:
    """A running server with its address."""

    def __init__(self, process, address, lines):
        self.process = process
        self.address = address
        self.lines = lines

    def post(self, path, body):
        return httpx.post(self.address + path, json=body, timeout=30)

    def vectors(self, task, texts):
        reply = self.post("/v1/embeddings", {"model": task, "input": texts})
        assert reply.status_code == 200, reply.text
        return np.array([item["embedding"] for item in reply.json()["data"]])


@contextlib.contextmanager
def serving(*arguments):
    process = subprocess.Popen(
        [*PROGRAM, *map(str, arguments), "--port", "0", "--threads", "1"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")))
    reader.start()
    try:
        deadline = time.monotonic() + 120
        address = None
        while True:
            assert process.poll() is None, "".join(lines)
            assert time.monotonic() < deadline, "".join(lines)
            found = re.search(r"listening on (http://\S+)", "".join(lines))
            address = found.group(1) if found else None
            if address is not None:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(address + "/health", timeout=5).status_code == 200:
                        break
            time.sleep(0.05)
        yield Process(process, address, lines)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        reader.join(10)
        process.stderr.close()


def failing(*arguments):
    ended = subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )
    return ended.returncode, ended.stderr.strip().splitlines()[-1]


def test_serve_answers_and_finishes_what_it_took(place):
    from helpers.serving import wait_for

    tasks = place / "tasks"
    with serving(
        tasks / "one", f"second={tasks / 'two'}", "--tasks-folder", tasks, "--drain", "5"
    ) as server:
        texts = ["the red boat", "a dog"]
        made = server.vectors("one", texts)
        np.testing.assert_allclose(made, expected(place, "one", texts), atol=2e-5)
        made = server.vectors("second:query", texts)
        np.testing.assert_allclose(made, expected(place, "two", texts), atol=2e-5)
        refused = server.post("/v1/tasks", {"task": "x", "bundle": "foreign"})
        assert refused.json()["error"]["type"] == "wrong_backbone"

        server.process.send_signal(signal.SIGTERM)
        # Draining: balancers are sent away, those who come all the same are answered.
        wait_for(lambda: httpx.get(server.address + "/health").status_code == 503)
        assert server.vectors("one", texts).shape == (2, 32)
        assert server.process.wait(30) == 0
    assert '"event": "stopped"' in "".join(server.lines)
    assert "red boat" not in "".join(server.lines)


def test_serve_workers_share_tasks_and_survive_the_death_of_one(place, tmp_path):
    tasks = place / "tasks"
    text = ["where does the old train cross the river"]
    right = {name: expected(place, name, text) for name in ("one", "two")}
    with serving(
        tasks / "one", "--tasks-folder", tasks, "--workers", "2", "--state", tmp_path / "state"
    ) as server:
        added = server.post("/v1/tasks", {"task": "two", "bundle": "two"})
        assert added.status_code == 201
        # Whichever worker is asked, it knows the task at once.
        for _ in range(12):
            np.testing.assert_allclose(server.vectors("two", text), right["two"], atol=2e-5)

        stop = threading.Event()
        wrong, dropped, answered = [], [], [0]

        def ask():
            while not stop.is_set():
                for name, vector in right.items():
                    try:
                        made = server.vectors(name, text)
                    except httpx.TransportError as error:
                        dropped.append(error)
                        continue
                    answered[0] += 1
                    if not np.allclose(made, vector, atol=2e-5):
                        wrong.append(name)

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        time.sleep(0.5)
        before = children(server.process.pid)
        os.kill(before[0], signal.SIGKILL)
        at_kill = answered[0]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            now = children(server.process.pid)
            if len(now) == len(before) and before[0] not in now and answered[0] > at_kill + 50:
                break
            time.sleep(0.1)
        stop.set()
        for asker in askers:
            asker.join()

        assert wrong == []
        assert answered[0] > at_kill + 50
        assert before[0] not in children(server.process.pid)
        # Only what the killed worker held in its hands is lost.
        assert len(dropped) <= 3 * 2
        metrics = httpx.get(server.address + "/metrics").text
        assert 'dptdr_task_requests_total{task="two"}' in metrics
        # Workers do not outlive the one who would replace them.
        left = children(server.process.pid)
        server.process.kill()
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in left):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def children(pid):
    """Server processes of a supervisor, in order; the helpers of multiprocessing are not."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            command = (folder / "cmdline").read_bytes()
            if parent == pid and b"spawn_main" in command and b"resource_tracker" not in command:
                found.append(int(folder.name))
    return sorted(found)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tasks}/none"], "expected a task bundle"),
        ([], "expected at least one task, or --backbone"),
        (["{tasks}/one", "--layout", "round"], "--layout: expected 'packed' or 'padded'"),
        (["{tasks}/one", "--keys", "/none.toml"], "--keys /none.toml: no such file"),
        (["{tasks}/one", "{tasks}/one"], "task 'one' is given twice"),
    ],
)
def test_serve_bad_input_is_an_error_before_anything_starts(place, arguments, words):
    from typer.testing import CliRunner

    from dptdr.cli.app import build_app
    from dptdr.errors import DptdrError

    given = [argument.format(tasks=place / "tasks") for argument in arguments]
    ended = CliRunner().invoke(build_app(), ["serve", *given])

    # main() turns these into one line and exit code 2.
    assert isinstance(ended.exception, DptdrError)
    assert words in str(ended.exception)


def test_serve_workers_that_cannot_load_end_the_server_with_the_reason(place):
    tasks = place / "tasks"
    code, line = failing(tasks / "one", tasks / "foreign", "--port", "0", "--workers", "2")
    assert code == 2
    assert "the task was trained on backbone" in line


def test_serve_help_needs_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from dptdr.cli.app import build_app;"
        "r = CliRunner().invoke(build_app(), ['serve', '--help']); print(r.output);"
        "sys.exit(int('torch' in sys.modules) or r.exit_code)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    for option in ("--index", "--workers", "--keys", "--tasks-folder", "--drain"):
        assert option in ended.stdout
