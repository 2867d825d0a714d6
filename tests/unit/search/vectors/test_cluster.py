"""Encoding by Ray Data. Ray is started in a process of its own, since it leaves threads behind."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import textwrap

import pytest

from dptdr.errors import DataError, VectorsError
from dptdr.search.vectors.cluster import (
    Cluster,
    ShardRange,
    ShardWorker,
    encode_on_ray,
    shard_ranges,
)
from dptdr.search.vectors.documents import read_documents, source_of
from dptdr.search.vectors.encoding import EncodeSettings, begin_folder, encode_folder

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="NOT TESTED: Ray is not installed (pip install 'dptdr[cluster]')",
)

HELPERS = """
import functools, hashlib, os, signal
from pathlib import Path
import numpy as np
from dptdr.errors import VectorsError

class Double:
    dim, name = 8, "double"
    backbone_fingerprint = query_fingerprint = passage_fingerprint = "f"
    def encode_queries(self, texts, *, on_progress=None):
        rows = [hashlib.sha256(text.encode()).digest()[:8] for text in texts]
        return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(texts), 8).astype("f4")
    encode_passages = encode_queries

class DiesOnce(Double):
    def __init__(self, log):
        self.log = Path(log)
    def encode_passages(self, texts, *, on_progress=None):
        with self.log.open("a") as handle:
            handle.write(f"{os.getpid()}\\n")
        mark = self.log.with_suffix(".died")
        if "text 13" in texts and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.encode_queries(texts)

class Nan(Double):
    def encode_passages(self, texts, *, on_progress=None):
        return self.encode_queries(texts) * np.float32("nan")
"""

ON_RAY = """
import functools, sys
from pathlib import Path
import worker_helpers
from dptdr.search.vectors.cluster import Cluster, encode_on_ray
from dptdr.search.vectors.documents import source_of
from dptdr.search.vectors.encoding import EncodeSettings

data, out, log = map(Path, sys.argv[1:])
seen = []
encode_on_ray(
    functools.partial(worker_helpers.DiesOnce, str(log)),
    data,
    out=out,
    source=source_of(data),
    settings=EncodeSettings(shard_size=4),
    cluster=Cluster(),
    on_progress=lambda *pair: seen.append(pair),
)
print(seen[-1])
"""


@pytest.fixture
def helpers(tmp_path, monkeypatch):
    (tmp_path / "worker_helpers.py").write_text(HELPERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import worker_helpers

    yield worker_helpers
    del sys.modules["worker_helpers"]


@pytest.fixture
def data(tmp_path):
    lines = [json.dumps({"_id": f"d{n}", "title": "", "text": f"text {n}"}) for n in range(33)]
    # A byte order mark, blank lines and other line endings must not shift the shards.
    lines[5] += "\r\n\n  "
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "corpus.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    return folder


def contents(path):
    return {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()}


SMALL = EncodeSettings(shard_size=4)


def whole(helpers, data, out):
    source = source_of(data)
    return encode_folder(
        helpers.Double(), read_documents(data), out=out, source=source, settings=SMALL
    )


@needs_ray
def test_two_ray_workers_one_killed_write_the_bytes_of_one_process(helpers, data, tmp_path):
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ON_RAY), str(data), str(tmp_path / "v"), str(log)],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Lines, of which two are blank.
    # Ray tells of the lost worker on the same stream, sometimes last.
    assert "(35, 35)" in done.stdout.splitlines()
    assert contents(tmp_path / "v") == contents(whole(helpers, data, tmp_path / "w").path)
    # Two workers, and one in the place of the killed one.
    assert len(set(log.read_text().split())) == 3
    assert log.with_suffix(".died").exists()


def test_shards_cover_the_corpus_and_workers_write_what_one_process_writes(helpers, data, tmp_path):
    shards = list(shard_ranges(data, 4))
    assert [shard.number for shard in shards] == list(range(9))
    assert [shard.line for shard in shards[:3]] == [1, 5, 11]
    assert shards[0].start == 0
    assert all(a.end == b.start for a, b in itertools.pairwise(shards))
    assert shards[-1].end == (data / "corpus.jsonl").stat().st_size
    work = begin_folder(
        helpers.Double(), out=tmp_path / "v", source=source_of(data), settings=SMALL
    )
    worker = ShardWorker(helpers.Double, data, work, "float32")
    assert [worker(shard._asdict())["number"] for shard in reversed(shards)] == list(range(9))[::-1]
    made = whole(helpers, data, tmp_path / "v")
    assert contents(made.path) == contents(whole(helpers, data, tmp_path / "w").path)


def test_a_doubled_id_is_refused_before_any_worker_starts(data):
    path = data / "corpus.jsonl"
    path.write_bytes(path.read_bytes() + b'\n{"_id": "d7", "title": "", "text": "again"}')
    with pytest.raises(VectorsError, match="duplicate passage id 'd7'"):
        list(shard_ranges(data, 4))


def test_a_broken_line_names_file_and_line(helpers, data, tmp_path):
    path = data / "corpus.jsonl"
    path.write_bytes(path.read_bytes() + b"\n{broken")
    with pytest.raises(DataError, match=r"corpus.jsonl, line 36: expected a JSON object"):
        list(shard_ranges(data, 4))
    worker = ShardWorker(helpers.Double, data, tmp_path, "float32")
    size = path.stat().st_size
    row = worker(ShardRange(8, size - 7, size, 36)._asdict())
    assert row["kind"] == "DataError"
    assert "corpus.jsonl, line 36: expected a JSON object" in row["error"]


def test_an_empty_corpus_is_refused(data):
    (data / "corpus.jsonl").write_bytes(b"\n\n")
    with pytest.raises(VectorsError, match=r"corpus.jsonl: expected at least one passage"):
        list(shard_ranges(data, 4))


@needs_ray
@pytest.mark.parametrize("seen_here", [True, False])
def test_what_went_wrong_at_a_worker_arrives(helpers, data, tmp_path, monkeypatch, seen_here):
    def encoded(ray, shards, load_encoder, data, work, dtype, cluster):
        worker = ShardWorker(helpers.Nan if seen_here else helpers.Double, data, work, dtype)
        if not seen_here:
            worker.work = tmp_path / "elsewhere"
        yield from (worker(shard._asdict()) for shard in shards)

    monkeypatch.setattr("dptdr.search.vectors.cluster._encoded", encoded)
    monkeypatch.setattr("dptdr.search.vectors.cluster._connect", lambda ray, cluster: None)
    expected = "passage 'd0' contains NaN" if seen_here else "9 shards .*not visible here"
    with pytest.raises(VectorsError, match=expected):
        encode_on_ray(
            helpers.Double,
            data,
            out=tmp_path / "v",
            source=source_of(data),
            settings=SMALL,
            cluster=Cluster(),
        )


@needs_ray
def test_no_worker_is_refused(helpers, data, tmp_path):
    with pytest.raises(VectorsError, match="at least 1 worker, got 0"):
        encode_on_ray(
            helpers.Double,
            data,
            out=tmp_path / "v",
            source=source_of(data),
            settings=SMALL,
            cluster=Cluster(workers=0),
        )


@needs_ray
def test_an_address_where_nobody_listens_is_refused_at_once(helpers, data, tmp_path):
    with pytest.raises(VectorsError, match=r"no Ray cluster at '127.0.0.1:9' .*ray start --head"):
        encode_on_ray(
            helpers.Double,
            data,
            out=tmp_path / "v",
            source=source_of(data),
            settings=SMALL,
            cluster=Cluster("127.0.0.1:9"),
        )


def test_missing_ray_says_what_to_install(helpers, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(VectorsError, match=r"needs Ray .*pip install 'dptdr\[cluster\]'"):
        encode_on_ray(
            helpers.Double,
            data,
            out=tmp_path / "v",
            source=source_of(data),
            settings=SMALL,
            cluster=Cluster(),
        )
