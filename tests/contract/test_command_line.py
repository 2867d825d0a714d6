"""What scripts outside the repository rely on: commands, help, exit codes."""

import subprocess
import sys

import pytest
from typer.main import get_command

from dptdr.cli.app import COMMANDS, GROUPS, build_app


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
