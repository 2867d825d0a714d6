import re
import sys
import types
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from dptdr.cli import app, main
from dptdr.cli.app import build_app
from dptdr.cli.options import settings as options_of
from dptdr.config.settings import Setting
from dptdr.errors import ConfigError
from dptdr.io.progress import progress
from dptdr.serving.settings import ServerLimits


def called(monkeypatch, capsys, command):
    """Run ``dptdr probe`` with this command and return exit code and standard error."""
    module = types.ModuleType("probe_command")
    module.command = command
    monkeypatch.setitem(sys.modules, "probe_command", module)
    monkeypatch.setattr(app, "COMMANDS", {"probe": "probe_command"})
    monkeypatch.setattr(app, "GROUPS", {})
    monkeypatch.setattr(sys, "argv", ["dptdr", "probe"])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


def interrupted():
    with progress("mine") as show:
        show(3, 10)
        raise KeyboardInterrupt


def refused():
    raise ConfigError("expected this, got that")


def full():
    raise OSError(28, "No space left on device", "out.jsonl")


@pytest.mark.parametrize(
    ("command", "code", "line"),
    [
        (
            interrupted,
            130,
            "interrupted dptdr probe (mine, 3 of 10); rerun the command to start again",
        ),
        (refused, 2, "error: expected this, got that"),
        (full, 2, "error: out.jsonl: No space left on device"),
    ],
)
def test_a_command_ends_with_one_line_and_its_code(monkeypatch, capsys, command, code, line):
    found, said = called(monkeypatch, capsys, command)
    assert found == code
    assert said.splitlines()[-1].startswith(line)


@pytest.mark.parametrize(
    ("name", "overwrite", "advice"),
    [
        ("train", False, "completed work is kept, rerun the command to resume"),
        ("train", True, "completed work is kept, rerun the command without --overwrite to resume"),
        ("encode", False, "completed work is kept, rerun the command to resume"),
        ("encode", True, "rerun the command to start again"),
        ("search", False, "rerun the command to start again"),
    ],
)
def test_an_interruption_says_how_to_go_on(monkeypatch, name, overwrite, advice):
    def command(overwrite):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "current_phase", lambda: "")
    with pytest.raises(app.Stopped, match=f"dptdr {name}; {advice}$"):
        app._with_exit_codes(command, name=name)(overwrite=overwrite)


def test_a_closed_pipe_ends_with_141(monkeypatch, capsys):
    def closed():
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("os.dup2", lambda *_: None)
    monkeypatch.setattr("sys.stdout.fileno", lambda: 1, raising=False)
    assert called(monkeypatch, capsys, closed) == (141, "")


def test_settings_are_named_as_options_but_never_inside_paths():
    from dptdr.cli.options import with_flags

    options = {"json": None, "batch_size": None}
    said = with_flags("training settings: batch_size: expected 2; json: bad", options)
    assert said == "training settings: --batch-size: expected 2; --json: bad"
    assert with_flags("t5/r.json: expected a report", options) == "t5/r.json: expected a report"
    assert with_flags("my json: expected a report", options) == "my json: expected a report"


def test_help_gives_every_derived_option_its_default_and_range_once():
    def words(command):
        shown = CliRunner().invoke(build_app(), [command, "--help"], terminal_width=200)
        return " ".join(shown.output.split())

    train, serve = words("train"), words("serve")
    assert "Random seed. [default: 0; 0<=x<=4294967295]" in train
    assert "without improvement; none: train all steps. [default: none; x>=1]" in train
    assert "[default: no-keep-identical]" in train
    assert "Default: twice --rank. Machine" in train
    assert "per key and worker; 0: no limit. [default: 0.0; x>=0]" in serve
    assert "INTEGER" not in train + serve
    assert "--check-every" not in serve


def test_options_of_several_methods_have_a_heading_of_their_own():
    shown = CliRunner().invoke(build_app(), ["train", "--help"]).output
    shared = shown.partition("\nSeveral methods:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  (--\S+)", shared, re.MULTILINE) == ["--sharing", "--dropout"]


@pytest.mark.parametrize(
    ("setting", "note"),
    [
        (Setting(""), ""),
        (Setting("", min=1), "x>=1"),
        (Setting("", above=0), "x>0"),
        (Setting("", max=5), "x<=5"),
        (Setting("", above=0, below=1), "0<x<1"),
        (Setting("", min=0, max=1), "0<=x<=1"),
    ],
)
def test_the_range_of_a_setting_is_written_as_click_writes_ranges(setting, note):
    assert setting.range_note == note


def test_the_former_options_of_serve_still_set_the_limits():
    @options_of({ServerLimits: "Limits"})
    def command(settings: dict[str, Any]):
        raise typer.Exit(int(settings == {"check_every": 7, "drain_seconds": 2.5}))

    made = typer.Typer()
    made.command()(command)
    for flags in (["--check-every", "--drain"], ["--self-check-interval", "--drain-seconds"]):
        words = [flags[0], "7", flags[1], "2.5"]
        assert CliRunner().invoke(made, words).exit_code == 1
