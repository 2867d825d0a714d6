"""The command blocks of a docs page run, in the folders that the page itself makes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tiny import save_tiny

DOCS = Path(__file__).resolve().parents[2] / "docs"

# Calls dptdr with a tiny backbone and few steps: what the page shows takes minutes.
SHORTER = """#!{python}
import sys
from dptdr.cli import main

words = ["{backbone}" if word == "minilm" else word for word in sys.argv[1:]]
if words[0] == "train":
    words += ["--max-steps", "2", "--batch-size", "2"]
sys.argv[1:] = words
main()
"""


def blocks(page):
    """Language and text of the page's blocks that are commands or programs."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"```(sh|python)\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", ["data.md"])
def test_the_blocks_of_a_page_run_one_after_the_other(tmp_path, page):
    save_tiny(tmp_path / "tiny")
    command = tmp_path / "bin" / "dptdr"
    command.parent.mkdir()
    command.write_text(SHORTER.format(python=sys.executable, backbone=tmp_path / "tiny"))
    command.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    assert blocks(page)
    for language, block in blocks(page):
        program = ["bash", "-euc", block] if language == "sh" else [sys.executable, "-c", block]
        done = subprocess.run(
            program, cwd=work, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
