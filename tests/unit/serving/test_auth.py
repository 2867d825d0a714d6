import hashlib
import os

import pytest

from dptdr.errors import ConfigError
from dptdr.serving.auth import Forbidden, KeyFile, Keyring, Unauthorized, hash_key

GOOD = f"""
[[key]]
name = "search-team"
sha256 = "{hashlib.sha256(b"open sesame").hexdigest()}"
scopes = ["use"]
tasks = ["medical-*", "law"]
requests_per_second = 5

[[key]]
name = "operator"
sha256 = "{hashlib.sha256(b"root").hexdigest().upper()}"
scopes = ["use", "administer"]
"""


@pytest.fixture
def keyring(tmp_path):
    (tmp_path / "keys.toml").write_text(GOOD)
    return Keyring.read(tmp_path / "keys.toml")


def test_find_knows_keys_by_their_hash(keyring):
    key = keyring.find("open sesame")

    assert (key.name, key.requests_per_second) == ("search-team", 5)
    assert keyring.find("root").name == "operator"
    assert not keyring.open
    for wrong in (None, "", "open sesam", hash_key("root")):
        with pytest.raises(Unauthorized):
            keyring.find(wrong)


def test_demand_scopes_and_tasks(keyring):
    key = keyring.find("open sesame")

    key.demand("use", "medical-a")
    key.demand("use", "law")
    with pytest.raises(Forbidden, match="'search-team' has no access to task 'backbone'"):
        key.demand("use", "backbone")
    with pytest.raises(Forbidden, match="lacks the scope 'administer'"):
        key.demand("administer", "law")
    keyring.find("root").demand("administer", "anything")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[key", "expected TOML"),
        ("", r"one or more \[\[key\]\] tables"),
        ("x = 1\n" + GOOD, "nothing else"),
        ("[[key]]\nname='a'\nscopes=['use']\n", "key 1: field 'sha256'"),
        ("[[key]]\nname='a'\nsha256='zz'\nscopes=['all']\n", "sha256.*key 1: field 'scopes'"),
        (GOOD + "secret='x'\n", "key 2: unknown fields"),
        (GOOD + "requests_per_second=-1\n", "key 2: field 'requests_per_second'"),
        (GOOD + "tasks='law'\n", "key 2: field 'tasks'"),
    ],
)
def test_read_names_all_problems(tmp_path, text, words):
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        Keyring.read(tmp_path / "keys.toml")


def test_read_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        Keyring.read(tmp_path / "keys.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("key = [1]\n", "key 1: expected a table"),
        ("[[key]]\nname='a'\nsha256='" + "0" * 64 + "'\nscopes=[['use']]\n", "field 'scopes'"),
        (GOOD + "requests_per_second=nan\n", "requests_per_second"),
        (GOOD + "requests_per_second=inf\n", "requests_per_second"),
        (GOOD + "requests_per_second=1" + "0" * 400 + "\n", "requests_per_second"),
        (GOOD + "bundles=[1]\n", "field 'bundles'"),
        (GOOD + GOOD, "key 3: field 'sha256': duplicate hash"),
    ],
)
def test_read_refuses_what_would_be_another_error_later(tmp_path, text, words):
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        Keyring.read(tmp_path / "keys.toml")


def test_read_only_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in ((tmp_path, "a folder"), (tmp_path / "pipe", "a pipe, socket or device")):
        with pytest.raises(ConfigError, match=f"expected a regular file, got {words}"):
            Keyring.read(path)


def test_a_changed_file_is_read_again_and_a_broken_change_is_not_taken(tmp_path, capsys):
    path = tmp_path / "keys.toml"
    path.write_text(GOOD)
    keys = KeyFile(path)
    assert keys.keyring() is keys.keyring()
    path.write_text(GOOD[: GOOD.rindex("[[key]]")])
    with pytest.raises(Unauthorized):
        keys.keyring().find("root")
    path.write_text("[[key")
    assert keys.keyring().find("open sesame").name == "search-team"
    path.unlink()
    assert keys.keyring().find("open sesame").name == "search-team"
    assert capsys.readouterr().err.count("API keys not reloaded") == 2
