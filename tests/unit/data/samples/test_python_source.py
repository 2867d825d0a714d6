import ast
from pathlib import Path

import pytest

from dptdr.data.sample import python_source as sources
from dptdr.errors import DataError

TREE = ast.parse(
    '''
"""Of the module: not listed."""
def one():
    """First."""
    def inner():
        "Inner."
if True:
    class Two:
        """Second.

        More.
        """
        async def method(self):
            """Third."""
def bare(): pass
try:
    pass
except ValueError:
    def four():
        """Fourth."""
'''
)


def test_definitions_are_found_at_any_depth_in_file_order():
    assert [(item.name, item.docstring) for item in sources.documented(TREE)] == [
        ("one", "First."),
        ("one.inner", "Inner."),
        ("Two", "Second.\n\nMore."),
        ("Two.method", "Third."),
        ("four", "Fourth."),
    ]


def test_the_lines_of_a_docstring_are_known():
    lines = {item.name: sources.docstring_lines(item.node) for item in sources.documented(TREE)}

    assert lines["one"] == range(4, 5)
    assert lines["Two"] == range(9, 13)
    bare = next(n for n in TREE.body if isinstance(n, ast.FunctionDef) and n.name == "bare")
    assert not sources.docstring_lines(bare)


def test_paragraphs_are_separated_by_blank_lines_and_unindented():
    assert sources.paragraphs("First\n    line.\n\n\n      Second.\n        Deeper.\n    ") == [
        "First\nline.",
        "  Second.\n    Deeper.",
    ]


def test_the_standard_library_has_no_tests_and_no_installed_packages():
    modules = [file.module for file in sources.standard_library(skip=frozenset({"turtle"}))]

    assert "json.decoder" in modules
    assert "json" in modules
    assert "turtle" not in modules
    assert modules == sorted(modules)
    assert not [name for name in modules if {"test", "tests"} & set(name.split("."))]
    assert not [name for name in modules if "numpy" in name]


def test_parts_of_a_package_are_chosen_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in (
        "__init__",
        "top",
        "nn/layer",
        "utils/data/load",
        "utils/other",
        "nn/tests/test_x",
    ):
        file = tmp_path / "pack_age" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)

    assert [file.module for file in sources.package_sources("pack_age")] == [
        "pack_age",
        "pack_age.nn.layer",
        "pack_age.top",
        "pack_age.utils.data.load",
        "pack_age.utils.other",
    ]
    chosen = sources.package_sources("pack_age", only=("utils/data", "nn"))
    assert [file.module for file in chosen] == [
        "pack_age",
        "pack_age.top",
        "pack_age.utils.data.load",
        "pack_age.nn.layer",
    ]


def test_a_package_that_is_not_installed_is_an_error():
    with pytest.raises(DataError, match="'no_such_package' is not installed"):
        sources.package_sources("no_such_package")


def test_a_file_that_is_no_python_is_passed_over(tmp_path: Path):
    (tmp_path / "template.py").write_text("{{ cookiecutter }}: def")
    (tmp_path / "null.py").write_bytes(b"a\0")
    (tmp_path / "warns.py").write_text(r"text = '\d'")

    assert sources.parse(tmp_path / "template.py") is None
    assert sources.parse(tmp_path / "null.py") is None
    assert sources.parse(tmp_path / "warns.py") is not None
