import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dptdr
from dptdr.errors import DataError, VectorsError
from dptdr.io.atomic import is_alive
from dptdr.search.vectors.documents import Source
from dptdr.search.vectors.encoding import EncodeSettings, encode_folder
from dptdr.search.vectors.workers import encode_in_processes

# Children import these functions by file, since tests are not a package.
HELPERS = """
import hashlib, os, signal
from dptdr.records import Passage
import numpy as np
from dptdr.errors import DataError

class Double:
    dim, name = 8, "double"
    backbone_fingerprint = query_fingerprint = passage_fingerprint = "f"
    def encode_queries(self, texts, *, on_progress=None):
        rows = [hashlib.sha256(text.encode()).digest()[:8] for text in texts]
        return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(texts), 8).astype("f4")
    encode_passages = encode_queries

class Dies(Double):
    def encode_passages(self, texts, *, on_progress=None):
        if "text 13" in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_queries(texts)

class Waits(Double):
    def encode_passages(self, texts, *, on_progress=None):
        import pathlib, time
        pathlib.Path(os.environ["PIDS"], str(os.getpid())).touch()
        time.sleep(600)

def passages(count):
    return [Passage(f"d{n}", f"text {n}") for n in range(count)]

def broken():
    yield Passage("d0", "text")
    raise DataError("expected JSON", path="corpus.jsonl", line=2)
"""


@pytest.fixture
def helpers(tmp_path, monkeypatch):
    (tmp_path / "worker_helpers.py").write_text(HELPERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import worker_helpers

    yield worker_helpers
    import sys

    del sys.modules["worker_helpers"]


def contents(path):
    return {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_two_processes_write_the_bytes_of_one(helpers, tmp_path):
    seen = []
    folder = encode_in_processes(
        helpers.Double,
        functools.partial(helpers.passages, 33),
        out=tmp_path / "v",
        source=Source(fingerprint="f", count=33),
        settings=EncodeSettings(shard_size=4),
        processes=2,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    whole = encode_folder(
        helpers.Double(),
        helpers.passages(33),
        out=tmp_path / "w",
        source=Source(fingerprint="f"),
        settings=EncodeSettings(shard_size=4),
    )
    assert contents(folder.path) == contents(whole.path)
    assert seen[-1] == (33, 33)


def test_a_killed_process_keeps_what_was_finished_and_a_second_run_goes_on(helpers, tmp_path):
    arguments = {
        "out": tmp_path / "v",
        "source": Source(fingerprint="f"),
        "settings": EncodeSettings(shard_size=4),
        "processes": 2,
    }
    read = functools.partial(helpers.passages, 33)
    with pytest.raises(VectorsError, match="an encoding process died"):
        encode_in_processes(helpers.Dies, read, **arguments)
    assert not (tmp_path / "v").exists()
    folder = encode_in_processes(helpers.Double, read, **arguments)
    folder.verify()
    assert list(folder.all_ids()) == [f"d{n}" for n in range(33)]


def test_an_error_in_the_data_arrives_with_file_and_line(helpers, tmp_path):
    with pytest.raises(DataError, match=r"corpus.jsonl, line 2: expected JSON"):
        encode_in_processes(
            helpers.Double,
            helpers.broken,
            out=tmp_path / "v",
            source=Source(fingerprint="f"),
            settings=EncodeSettings(),
            processes=2,
        )


def test_no_process_is_refused(helpers, tmp_path):
    with pytest.raises(VectorsError, match="at least 1 process, got 0"):
        encode_in_processes(
            helpers.Double,
            functools.partial(helpers.passages, 1),
            out=tmp_path / "v",
            source=Source(fingerprint="f"),
            settings=EncodeSettings(),
            processes=0,
        )


MAIN = """
import functools
from pathlib import Path
import worker_helpers
from dptdr.search.vectors.documents import Source
from dptdr.search.vectors.encoding import EncodeSettings
from dptdr.search.vectors.workers import encode_in_processes
if __name__ == "__main__":
    encode_in_processes(
        worker_helpers.Waits, functools.partial(worker_helpers.passages, 20), out=Path("v"),
        source=Source(fingerprint="x"), settings=EncodeSettings(shard_size=5), processes=2,
    )
"""


def test_processes_end_with_the_one_that_started_them(helpers, tmp_path, monkeypatch):
    pids = tmp_path / "pids"
    pids.mkdir()
    (tmp_path / "main.py").write_text(MAIN)
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    path += os.pathsep + str(Path(dptdr.__file__).parents[1])
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "main.py"],
        cwd=tmp_path,
        env={**os.environ, "PIDS": str(pids), "PYTHONPATH": path},
    )
    wait_until(lambda: len(list(pids.iterdir())) == 2 or parent.poll() is not None)
    parent.kill()
    parent.wait()
    workers = [int(file.name) for file in pids.iterdir()]
    assert len(workers) == 2
    wait_until(lambda: not any(is_alive(pid) for pid in workers))


def wait_until(done, seconds=120):
    for _ in range(seconds * 10):
        if done():
            return
        time.sleep(0.1)
    raise AssertionError("waited too long")
