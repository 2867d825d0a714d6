"""Any damage to a vector folder or index is found as one error, or does no harm."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dptdr.errors import VectorsError
from dptdr.search.indexes.local import open_index
from helpers.damage import DAMAGE, JSON_VALUES, damage, exchange

OLD_INDEX = Path(__file__).parents[1] / "golden" / "index_0_1_0"
MANIFESTS = ("manifest.json", "vectors/manifest.json")
FILES = (
    "vectors/shards/00000.npy",
    "vectors/shards/00000.ids.npy",
    "vectors/shards/00000.offsets.npy",
    "vectors/shards/00001.jsonl",
)
QUIET = settings(
    max_examples=200,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def use(index):
    """Do all that reads files; return only valid answers."""
    opened = open_index(index)
    vectors = opened.vectors.gather(np.arange(3))
    if not np.isfinite(vectors).all():
        vectors = np.ones_like(vectors)
    opened.search(vectors, depth=5)
    documents = opened.documents(list(opened.vectors.all_ids()))
    assert all(isinstance(document.passage.text, str) for document in documents)


def refused_or_harmless(index):
    message = f"{index}: nothing to say"
    try:
        use(index)
    except VectorsError as error:
        message = str(error)
    assert str(index) in message
    assert "\n" not in message


@pytest.fixture
def index(tmp_path):
    shutil.copytree(OLD_INDEX, tmp_path / "i")
    return tmp_path / "i"


@pytest.mark.parametrize("name", FILES)
@given(*DAMAGE)
@QUIET
def test_a_damaged_file_of_a_shard_is_refused_or_does_no_harm(index, name, kind, place, byte):
    path = index / name
    whole = path.read_bytes()
    manifest = index / "vectors" / "manifest.json"
    record = json.loads(manifest.read_text())
    try:
        path.write_bytes(damage(whole, kind, place, byte))
        # Forge what would give the damage away at once: the size.
        for shard in record["shards"]:
            for file in shard.values():
                if isinstance(file, dict) and file["name"] == path.name:
                    file["bytes"] = path.stat().st_size
        manifest.write_text(json.dumps(record))
        refused_or_harmless(index)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", MANIFESTS)
@given(st.integers(0, 10_000), JSON_VALUES)
@example(0, [])
@QUIET
def test_any_value_anywhere_in_a_manifest_is_refused_or_does_no_harm(index, name, where, value):
    path = index / name
    whole = path.read_text()
    try:
        path.write_text(exchange(whole, where, value))
        refused_or_harmless(index)
    finally:
        path.write_text(whole)


@pytest.mark.parametrize("name", MANIFESTS)
@given(*DAMAGE)
@QUIET
def test_a_damaged_manifest_is_refused_or_does_no_harm(index, name, kind, place, byte):
    path = index / name
    whole = path.read_bytes()
    try:
        path.write_bytes(damage(whole, kind, place, byte))
        refused_or_harmless(index)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"dim": ' + "9" * 5000 + "}",
        "\ud800".encode("utf-8", "surrogatepass"),
    ],
)
@pytest.mark.parametrize("name", MANIFESTS)
def test_json_that_breaks_parsers_is_one_error(index, name, text):
    (index / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(VectorsError, match=r"manifest.json: expected (valid JSON|UTF-8)"):
        open_index(index)


@pytest.mark.parametrize("name", [*MANIFESTS, *FILES, "index.bin", "vectors", "vectors/shards"])
def test_a_link_inside_the_folder_is_refused(index, name):
    path = index / name
    outside = index.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(VectorsError, match="got a symbolic link"):
        open_index(index)


def test_verify_finds_a_change_that_leaves_the_size(index):
    open_index(index).verify()
    path = index / "vectors" / "shards" / "00001.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(VectorsError, match=r"00001.npy: expected SHA-256 .* damaged"):
        open_index(index).verify()


FUZZ = """
    import random, sys, json
    from pathlib import Path
    import numpy as np
    from dptdr.errors import VectorsError
    from dptdr.io.atomic import sha256_file
    from dptdr.search.indexes.local import open_index

    index = Path(sys.argv[1])
    path, manifest = index / "index.bin", index / "manifest.json"
    whole, record = path.read_bytes(), json.loads(manifest.read_text())
    generator = random.Random(7)
    refused = 0
    for number in range(300):
        content = bytearray(whole)
        for _ in range(generator.choice([1, 1, 4])):
            content[generator.randrange(len(content))] = generator.randrange(256)
        if number % 5 == 0:
            content = content[: generator.randrange(len(content))]
        path.write_bytes(content)
        record["file"] |= {"bytes": len(content), "sha256": sha256_file(path)}
        manifest.write_text(json.dumps(record))
        try:
            opened = open_index(index)
            opened.search(opened.vectors.gather(np.arange(3)), depth=5)
        except VectorsError:
            refused += 1
    print(refused)
"""


def test_a_graph_with_a_forged_checksum_ends_no_process(index):
    """Native code reads the file; a crash would end the child by a signal."""
    script = textwrap.dedent(FUZZ)
    done = subprocess.run(
        [sys.executable, "-c", script, str(index)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 50
