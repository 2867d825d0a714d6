"""The protocol of outputs: complete, partial, other settings, locks, and what is tried first."""

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dptdr.errors import OutputError
from dptdr.io.atomic import _HOST, recover_folder
from dptdr.io.outputs import try_outputs
from dptdr.io.resume import check_same, claim

SETTINGS = {"steps": 4, "data": {"name": "a", "queries": 5}}


def make(out, settings=SETTINGS, *, text="made", fail=False, **options):
    """A stage that writes one file; returns whether it did, and what was kept."""
    with claim(out) as output:
        if output.begin(settings, **options):
            return False, output.result
        if fail:
            if "work" in options:
                options["work"].mkdir()
                (options["work"] / "half").touch()
            raise KeyboardInterrupt
        out.write_text(text)
        output.finish({"length": len(text)})
        return True, None


def test_the_same_settings_again_find_the_output_complete(tmp_path, capsys):
    out = tmp_path / "out"
    assert make(out) == (True, None)
    assert capsys.readouterr().err == ""
    assert make(out, dict(reversed(SETTINGS.items()))) == (False, {"length": 4})
    assert capsys.readouterr().err == f"{out}: complete, nothing to do\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.made.json", "out"]


def test_a_killed_stage_is_continued(tmp_path):
    out, work = tmp_path / "out", tmp_path / "out.partial"
    with pytest.raises(KeyboardInterrupt):
        make(out, work=work, fail=True)
    with pytest.raises(OutputError, match="steps: was 4, is 5"):
        make(out, SETTINGS | {"steps": 5}, work=work)
    assert make(out, work=work) == (True, None)
    assert (work / "half").exists()


def test_other_settings_are_refused_with_all_differences_unless_overwritten(tmp_path):
    out, work = tmp_path / "out", tmp_path / "out.training"
    make(out, work=work)
    work.mkdir()
    (work / "old").touch()
    other = {"data": {"name": "a", "queries": 6}, "seed": 1}
    expected = (
        f"{out}: cannot resume: these settings differ from the original run: data.queries: was 5, "
        "is 6; seed: was absent, is 1; steps: was 4, is absent; use the same settings, choose "
        "a different output, or use --overwrite"
    )
    with pytest.raises(OutputError) as error:
        make(out, other, work=work, text="other")
    assert str(error.value) == expected
    assert out.read_text() == "made"
    assert make(out, other, work=work, text="other", overwrite=True) == (True, None)
    assert out.read_text() == "other"
    assert not work.exists()


def test_a_kill_while_overwriting_is_not_taken_for_complete(tmp_path):
    out = tmp_path / "out"
    make(out)
    other = SETTINGS | {"steps": 9}
    with pytest.raises(KeyboardInterrupt):
        make(out, other, overwrite=True, fail=True)
    assert out.read_text() == "made"
    assert make(out, other, text="other") == (True, None)
    assert out.read_text() == "other"


def test_an_output_of_unknown_settings_is_kept(tmp_path):
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(OutputError, match=r"out: already exists, .* unknown; .*--overwrite"):
        make(out)
    assert out.read_text() == "mine"
    # An earlier version recorded the settings elsewhere.
    assert make(out, began=SETTINGS) == (True, None)


def test_an_output_that_was_changed_is_kept_and_one_that_was_removed_is_made_again(tmp_path):
    out = tmp_path / "out"
    make(out)
    out.write_text("changed since")
    with pytest.raises(OutputError, match="modified after completion"):
        make(out)
    out.unlink()
    assert make(out, SETTINGS | {"steps": 5}) == (True, None)


def test_a_folder_with_other_things_is_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").touch()
    with (
        pytest.raises(OutputError, match=r"contains unrelated files .no task\.json"),
        claim(tmp_path / "home", mark="task.json") as output,
    ):
        output.begin(SETTINGS, overwrite=True)
    (tmp_path / "empty").mkdir()
    with claim(tmp_path / "empty", mark="task.json") as output:
        assert not output.begin(SETTINGS)


HOLDER = """
    import sys
    from pathlib import Path
    from dptdr.io.resume import claim
    with claim(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds ``tmp_path / 'out'``."""
    code = textwrap.dedent(HOLDER)
    arguments = [sys.executable, "-c", code, str(tmp_path / "out")]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_told_who_holds_the_output(tmp_path, holder):
    words = rf"out: being written by process {holder.pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:"
    with pytest.raises(OutputError, match=words):
        make(tmp_path / "out")
    make(tmp_path / "other")
    holder.communicate()
    assert make(tmp_path / "out") == (True, None)


def test_the_lock_and_the_leftovers_of_a_killed_process_are_taken_over(tmp_path, holder):
    from dptdr.io import atomic

    dead = f"{atomic._HOST}-{holder.pid}"
    holder.kill()
    holder.wait()
    for name in (f".out.{dead}.abcdefgh.tmp", ".out.abc_efg1.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    kept = [
        f".out.{atomic._HOST}-{os.getpid()}.abcdefgh.tmp",
        f".out.0000aaaa-{holder.pid}.abcdefgh.tmp",  # Of another machine.
        f".out.jsonl.{dead}.abcdefgh.tmp",  # Of another output.
        "out.abcdefgh.tmp",
    ]
    for name in kept:
        (tmp_path / name).touch()
    assert make(tmp_path / "out") == (True, None)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == sorted([*kept, "out", ".out.made.json"])


def test_parts_of_one_folder_go_together_but_none_twice_and_not_with_the_whole(tmp_path):
    out = tmp_path / "v"
    with claim(out, mark="m", part=(0, 2)), claim(out, mark="m", part=(1, 2)):
        for part in ((0, 2), None):
            with (
                pytest.raises(OutputError, match=f"written by process {os.getpid()}"),
                claim(out, mark="m", part=part),
            ):
                pass
    with (
        claim(out, mark="m"),
        pytest.raises(OutputError, match="being written"),
        claim(out, mark="m", part=(0, 2)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be_written_are_found_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder: expected a file, got a folder"):
        try_outputs(tmp_path / "folder")
    with pytest.raises(OutputError, match="file: expected a folder, got a file"):
        try_outputs(tmp_path / "file", folders=True)
    with pytest.raises(OutputError, match=r"out: cannot be written .*file"):
        try_outputs(tmp_path / "file" / "out")
    with pytest.raises(OutputError, match=r"aaa: cannot be written \(File name too long"):
        try_outputs(tmp_path / ("a" * 300))
    with pytest.raises(OutputError, match=r"expected a named output, got '\.'"):
        try_outputs(Path())
    try_outputs(None, tmp_path / "new" / "deeper" / "out")
    assert list((tmp_path / "new" / "deeper").iterdir()) == []


def test_a_name_that_is_not_utf_8_is_refused_in_words_that_can_be_printed(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(OutputError, match=r"caf\\xe9': expected a UTF-8 name") as error:
        try_outputs(path)
    str(error.value).encode("ascii")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match=r"out: cannot be written \(Permission denied"):
        try_outputs(tmp_path / "out")
    tmp_path.chmod(0o700)


def test_a_file_system_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert make(tmp_path / "out") == (True, None)


def test_trying_an_output_removes_what_a_killed_process_left_of_it(tmp_path):
    left = tmp_path / f".report.json.{_HOST}-999999999.abcdefgh.tmp"
    left.write_text("half")
    kept = tmp_path / f".other.json.{_HOST}-999999999.abcdefgh.tmp"
    kept.write_text("half")
    try_outputs(tmp_path / "report.json")
    assert not left.exists()
    assert kept.exists()


@pytest.mark.parametrize("added", ["thesis.txt", "parts/thesis.txt", "own/deep/thesis.txt"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_file_that_somebody_added_is_not_overwritten(tmp_path, added, killed):
    def overwrite(settings, work=None):
        with claim(out, mark="mark.json") as output:
            return output.begin(settings, work=work, overwrite=True)

    out = tmp_path / "out"
    with claim(out, mark="mark.json") as output:
        assert not output.begin({"a": 1})
        (out / "parts").mkdir(parents=True)
        (out / "mark.json").write_text("{}")
        (out / "parts" / "1").write_text("one")
        output.finish()
    if killed:
        # It began, but did not replace anything.
        assert not overwrite({"a": 3})
    (out / added).parent.mkdir(parents=True, exist_ok=True)
    (out / added).write_text("years of work")
    work = tmp_path / "out.partial"
    work.mkdir()
    (work / "half").write_text("hours of computing")
    with pytest.raises(OutputError, match=rf"files that would be lost \({added}\)"):
        overwrite({"a": 2}, work=work)
    # A refusal changes nothing.
    assert (work / "half").exists()
    (out / added).unlink()
    assert not overwrite({"a": 2})


def test_a_folder_whose_record_is_missing_is_overwritten_if_all_is_ours(tmp_path):
    out = tmp_path / "out"
    (out / "shards").mkdir(parents=True)
    for name in ("manifest.json", "shards/00000.npy", "shards/notes.txt"):
        (out / name).write_text("{}")
    with (
        pytest.raises(OutputError, match=r"would be lost \(shards/notes.txt\)"),
        claim(out, mark="manifest.json") as output,
    ):
        output.begin({"a": 1}, overwrite=True)
    (out / "shards" / "notes.txt").unlink()
    for _ in range(2):
        with claim(out, mark="manifest.json") as output:
            assert not output.begin({"a": 1}, overwrite=True)


def test_an_output_that_is_a_link_is_refused_with_its_target(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "file").write_text("x")
    for link, target, folders in (("a", "target", True), ("b", "file", False), ("c", "no", True)):
        (tmp_path / link).symlink_to(tmp_path / target)
        with pytest.raises(OutputError, match=f"not a link.* use its target, .*{target}"):
            try_outputs(tmp_path / link, folders=folders)
        assert (tmp_path / link).is_symlink()


def test_a_link_that_somebody_left_is_not_taken_for_a_folder_moved_aside(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.old").symlink_to(tmp_path / "elsewhere")
    recover_folder(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_long_settings_that_differ_at_their_end_are_shown_where_they_differ(tmp_path):
    begun = {"ids": ["x"] * 50 + [1]}

    with pytest.raises(OutputError) as caught:
        check_same(begun, {"ids": ["x"] * 50 + [2]}, path=tmp_path)

    assert "1]" in str(caught.value)
    assert "2]" in str(caught.value)
