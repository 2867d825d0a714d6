from pathlib import Path

import pytest

from dptdr.data.sample.api import added_docs, api_pairs, split_documentation
from dptdr.data.sample.python_source import SourceFile, parse

REST = "The values are read one by one, from the first to the last, and added to what was there. "
REST += "Nothing is changed in place, so that the caller can go on with the list."


def test_summary_and_remainder_are_told_apart():
    assert split_documentation(f"Add all values.\n\n{REST}\n\nNotes\n-----\nNone.") == (
        "Add all values.",
        f"{REST}\nNotes\nNone.",
    )


def test_a_signature_before_the_summary_and_templates_are_dropped():
    docstring = (
        f"add(values) -> Tensor\n\nAdd all values.\n\n{REST}\n{{input}}\n%(extra)s\n{{{{1}}}}"
    )

    assert split_documentation(docstring) == ("Add all values.", f"{REST}\n{{1}}")


@pytest.mark.parametrize("docstring", ["Add all values.", "Add all values.\n\nShort rest.", REST])
def test_documentation_without_enough_of_a_remainder_is_left_out(docstring: str):
    assert split_documentation(docstring) is None


def test_documentation_that_a_call_attaches_is_found(tmp_path: Path):
    file = tmp_path / "docs.py"
    file.write_text(
        'add_newdoc("pack", "one", """first""")\n'
        'add_newdoc("pack", "kind", ("method", """second"""))\n'
        'add_newdoc("three", """third""")\n'
        'add_docstr(torch.four, r"""fourth {input}""".format(**common))\n'
        'other("pack", "five")\n'
    )
    tree = parse(file)

    assert tree is not None
    assert list(added_docs(tree)) == [
        ("one", "first"),
        ("kind.method", "second"),
        ("three", "third"),
        ("four", "fourth {input}"),
    ]


def test_only_public_names_count_and_the_name_is_not_in_the_passage(tmp_path: Path):
    file = tmp_path / "docs.py"
    file.write_text(
        f'def shown():\n    """Add all values.\n\n    {REST}\n    """\n'
        f'def _hidden():\n    """Add no values.\n\n    {REST}\n    """\n'
    )

    (pair,) = api_pairs([SourceFile("pack.docs", file)])

    assert pair == ("pack.docs.shown", "Add all values.", REST, "pack.docs")
