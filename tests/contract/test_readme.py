"""The make targets that the README names exist; its blocks run in ``test_docs.py``."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", re.findall(r"make (\w+)", README))
def test_make_targets_exist(target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_python_and_shell_begin_with_a_few_lines_each():
    start = README.split("## Five lines")[1]
    python, shell = (
        re.search(rf"```{name}\n(.*?)```", start, re.DOTALL)[1].split("\n")
        for name in ("python", "sh")
    )
    assert len([line for line in python if line]) == 5
    assert len([line for line in shell if line]) == 4
