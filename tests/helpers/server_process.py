"""Servers in processes of their own, as users start them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np

PROGRAM = [sys.executable, "-m", "dptdr", "serve"]


class ServerProcess:
    """A running server with its address and what it wrote to standard error."""

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

    def workers(self):
        """Return its worker processes, oldest first; the helpers of multiprocessing are none."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                    command = (folder / "cmdline").read_bytes()
                    is_worker = b"spawn_main" in command and b"resource_tracker" not in command
                    if int(fields[1]) == self.process.pid and is_worker:
                        found.append((int(fields[19]), int(folder.name)))
        return [pid for _, pid in sorted(found)]


@contextlib.contextmanager
def running_server(*arguments):
    """Give a server that answers; it is stopped at the end."""
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
        while True:
            assert process.poll() is None, "".join(lines)
            assert time.monotonic() < deadline, "".join(lines)
            found = re.search(r"listening on (http://\S+)", "".join(lines))
            if found is not None:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(found[1] + "/health", timeout=5).status_code == 200:
                        break
            time.sleep(0.05)
        yield ServerProcess(process, found[1], lines)
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
