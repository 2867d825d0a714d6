"""What scripts outside the repository rely on: commands, help, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from dptdr.cli.app import COMMANDS, GROUPS, build_app
from helpers.tasks import tiny_data


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "dptdr", *arguments], capture_output=True, text=True, check=False
    )


def test_help_of_every_command_imports_no_torch():
    code = (
        "import sys\n"
        "from typer.main import get_command\n"
        "from dptdr.cli.app import build_app\n"
        "root = get_command(build_app())\n"
        "for name, command in root.commands.items():\n"
        "    context = command.make_context(name, [], resilient_parsing=True)\n"
        "    command.get_help(context)\n"
        "heavy = {'torch', 'transformers', 'faiss', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_listed_command_exists():
    root = get_command(build_app())
    assert set(root.commands) == set(COMMANDS) | set(GROUPS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_of_a_command_has_a_help_text(name):
    command = get_command(build_app()).commands[name]
    for parameter in command.params:
        if parameter.name != "help" and not getattr(parameter, "hidden", False):
            assert parameter.help, f"{name} {parameter.name}"


def test_unknown_command_exits_with_two():
    done = run("no-such-command")
    assert done.returncode == 2
    assert "no-such-command" in done.stderr


def test_expected_errors_are_one_line_and_exit_with_two(tmp_path):
    done = run("train", str(tmp_path / "missing"), "--out", str(tmp_path / "task"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "missing" in done.stderr


def test_version_is_the_packages_version():
    import importlib.metadata

    done = run("--version")
    assert done.stdout.strip() == importlib.metadata.version("dptdr")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("streams") / "data")


def redirected(redirection, *arguments, **options):
    """Run the command in a shell, with a redirection."""
    words = [sys.executable, "-m", "dptdr", *map(str, arguments)]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *words],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["data", "inspect", "DATA", "--json", "-"]])
def test_a_full_standard_output_is_named(data, words, unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    words = [data if word == "DATA" else word for word in words]
    done = redirected(">/dev/full", *words, env=environment)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: standard output: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_device_is_named_and_a_full_standard_error_keeps_the_exit_code(data):
    done = run("data", "inspect", str(data), "--json", "/dev/full")
    assert done.returncode == 2
    assert "error: /dev/full: cannot be written (No space left on device)" in done.stderr
    assert redirected("2>/dev/full", "data", "inspect", data / "none").returncode == 2


def test_a_closed_standard_error_changes_neither_output_nor_exit_code(data):
    done = redirected("2>&-", "data", "inspect", data, "--json", "-")
    assert done.returncode == 0
    assert json.loads(done.stdout)["splits"]["train"]["grades"] == {"1": 24}
    assert redirected("2>&-", "data", "inspect", data / "none").returncode == 2
    assert redirected("2>&- >&-", "data", "inspect", data).returncode == 0


def test_a_deleted_working_folder_is_named(tmp_path, data):
    (tmp_path / "gone").mkdir()
    words = [sys.executable, "-m", "dptdr", "train", str(data), "--out", "task"]
    done = subprocess.run(
        ["sh", "-c", 'cd gone && rmdir ../gone && exec "$@"', "sh", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/gone: this folder, in which the command")
    assert done.stderr.count("\n") == 1
