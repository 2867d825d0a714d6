"""The README's blocks run, and its commands exist with the options it shows."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from dptdr.cli.app import build_app
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def dptdr_lines():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("dptdr ")]


def test_python_block_trains_measures_and_searches(tmp_path, monkeypatch, capsys):
    (block,) = blocks("python")
    tiny_data(tmp_path / "DATA")
    save_tiny(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    quick = block.replace('"minilm", max_steps=150', '"./tiny", max_steps=2, dev_passages=10')
    assert quick != block
    exec(compile(quick, "README.md", "exec"), {})
    measures, hits = capsys.readouterr().out.splitlines()
    assert "nDCG@10" in measures
    assert hits.count("SearchResult(") == 5


def test_there_are_command_lines_to_check():
    assert len(dptdr_lines()) >= 9


@pytest.mark.parametrize("line", dptdr_lines())
def test_shown_command_parses(line):
    command = get_command(build_app())
    words = shlex.split(line)[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    shown = {word for word in words if word.startswith("--")}
    assert shown <= known
    command.make_context("dptdr", words, resilient_parsing=True)


@pytest.mark.parametrize("target", re.findall(r"make (\w+)", README))
def test_make_targets_exist(target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#]+)\)", README))
def test_linked_files_exist(path):
    assert (ROOT / path).exists()
