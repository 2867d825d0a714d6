"""Atomic writes: whole or not at all, one error for whatever goes wrong, nothing left behind."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from safetensors import SafetensorError

from dptdr.errors import OutputError
from dptdr.io.atomic import atomic_file, atomic_folder, write_json, writing

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_keeps_the_old_file_and_names_it(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")

    def write():
        with atomic_file(path) as handle:
            handle.write(b"new")
            raise FULL

    with pytest.raises(OutputError, match=r"report.json: cannot be .*No space left.*make room"):
        write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("error", [FULL, SafetensorError("I/O error: No space left on device")])
def test_a_failed_write_keeps_the_old_folder_and_names_it(tmp_path, error):
    with atomic_folder(tmp_path / "task") as folder:
        (folder / "a").write_text("old")

    def write():
        with atomic_folder(tmp_path / "task") as folder:
            (folder / "a").write_text("new")
            raise error

    with pytest.raises(OutputError, match=r"/task: cannot be written \(.*No space left on device"):
        write()
    assert (tmp_path / "task" / "a").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["task"]


def test_a_file_that_fails_inside_a_folder_is_told_by_the_folders_name(tmp_path, monkeypatch):
    def full(descriptor):
        raise FULL

    def write():
        with atomic_folder(tmp_path / "task") as folder:
            monkeypatch.setattr(os, "fsync", full)
            write_json(folder / "task.json", {})

    with pytest.raises(OutputError, match=rf"^{tmp_path}/task: cannot be written"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_through(tmp_path):
    for error in (KeyError("x"), BrokenPipeError(), KeyboardInterrupt()):
        with pytest.raises(type(error)), atomic_folder(tmp_path / "task"):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_written_to_and_not_replaced():
    reader, writer = os.pipe()
    write_json(Path(f"/dev/fd/{writer}"), {"a": 1}, indent=None)
    assert os.read(reader, 100) == b'{"a": 1}\n'
    write_json(Path(os.devnull), {})
    assert Path(os.devnull).is_char_device()


def test_a_failed_copy_of_a_folder_says_the_reason_once(tmp_path):
    with (
        pytest.raises(OutputError, match=r"cannot be written \(No space left\)"),
        writing(tmp_path),
    ):
        raise shutil.Error([("a", "b", "No space left"), ("c", "d", "No space left")])
