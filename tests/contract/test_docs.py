"""The command blocks of the README and of each docs page run, in folders that they make.

``DATA`` is there beforehand, and what only others can give: official files, checkpoints, runs.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from dptdr.cli.app import build_app
from helpers.authors import save_authors
from helpers.tasks import tiny_data
from helpers.tiny import save_tiny

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
BLOCK = re.compile(r"```(sh|python)\n(.*?)```", flags=re.DOTALL)

SMALL = {
    "train": "--max-steps 2 --batch-size 2",
    "pretrain": "--max-steps 2 --batch-size 2 --mini-batch-size 2 --span-tokens 6 "
    "--precision float32",
    "import": "--max-passage-tokens 32",
    "mine": "--range-max 10 --num-negatives 2",
}
"""Options added to a command: what the pages show takes minutes."""

ELSEWHERE = ("make ", ".venv/bin/python examples/", "dptdr serve ", "dptdr quickstart")
"""Beginnings of commands that other tests run; here they must exist."""


def blocks(page):
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def parsed(words):
    """Check that a command exists with the options that are shown."""
    command = get_command(build_app())
    words = list(words)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("dptdr", words)


def run_command(line):
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return
    if "examples/" in line:
        assert (ROOT / words[1]).is_file()
        return
    # One process here: what several do together is tested with the trainer.
    words = words[words.index("dptdr") + 1 :]
    if line.startswith(ELSEWHERE):
        parsed(words)
        return
    words = [re.sub("^(backbone:)?minilm$", r"\1./tiny", word) for word in words]
    words = ["qdrant:store" if word.startswith("postgresql:") else word for word in words]
    words = [{"cuda": "cpu", "128": "32"}.get(word, word) for word in words]
    words = ["4" if words[i - 1] == "--dimensions" else word for i, word in enumerate(words)]
    words = [word for word in words if word != "--strict"]
    words += shlex.split(SMALL.get(words[0], ""))
    if words[0] == "pretrain" and "--prompt-only" not in words:
        words += ["--min-span-tokens", "2"]
    words += ["--force"] if "--prompt-only" in words else []
    if words[0] in ("train", "select", "pretrain") and "--backbone" not in words:
        words += ["--backbone", "./tiny"]
    done = CliRunner().invoke(build_app(), words)
    assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception}"


def run_shell(block):
    """Run a block in order: our own commands in this process, what makes files by the shell."""
    ours = r"^(?=(?:dptdr|torchrun|make|\.venv/bin/python) )|(?<=END)\n"
    for piece in re.split(ours, re.sub(r"\\\n\s*", "", block), flags=re.MULTILINE):
        if piece.startswith(("cat ", "mkdir ")):
            subprocess.run(["bash", "-euc", f"{piece}\n"], check=True)
            continue
        for line in piece.replace(" && dptdr", "\ndptdr").splitlines():
            if line.strip():
                run_command(line)


def official_files():
    """What the pages take from others, in small."""
    folder = Path("downloads/msmarco")
    folder.mkdir(parents=True)
    (folder / "collection.tsv").write_text("".join(f"{i}\ta passage {i}\n" for i in range(4)))
    for split in ("train", "dev.small"):
        (folder / f"queries.{split}.tsv").write_text("1\ta query\n")
        (folder / f"qrels.{split}.tsv").write_text("1\t0\t1\t1\n")
    Path("qrels.dev.small.tsv").write_text("0\t0\t1\t1\n")
    Path("nq-test.qa.csv").write_text("a query\t['passage']\n")
    Path("psgs_w100.tsv").write_text("id\ttext\ttitle\n1\ta passage\tTitle\n")
    Path("RUN").write_text("0\tQ0\t1\t1\t2.0\tx\n")
    save_authors(Path("CHECKPOINT"))


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_the_blocks_of_a_page_run_one_after_the_other(tmp_path, monkeypatch, page):
    if page == "docs/integrations.md":
        pytest.skip("has a test of its own")
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "tiny")
    tiny_data(tmp_path / "DATA")
    if page == "docs/reproduce.md":
        official_files()
    for language, block in blocks(page):
        if language == "sh":
            run_shell(block)
        elif "127.0.0.1" not in block:
            small = block.replace('"minilm", max_steps=150', '"./tiny", max_steps=2, batch_size=2')
            exec(compile(small, page, "exec"), {})


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_exist(page):
    for path in re.findall(
        r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")
    ):
        assert ((ROOT / page).parent / path).exists(), path
