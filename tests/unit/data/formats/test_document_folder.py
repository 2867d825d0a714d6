import pytest

from dptdr.data.formats.conversion import convert
from dptdr.data.formats.document_folder import MAX_WORDS
from dptdr.errors import DataError
from dptdr.io.beir import BeirFolder

MARKDOWN = """---
title: left out
---
Before *any* heading.

# Zip `files`

Open an
[archive](https://example.org) &amp; list it.

- one
- two

```python
zipfile.ZipFile("x")
```

| a | b |
| - | - |
| 1 | 2 |

<div>raw <b>markup</b></div>

Empty
-----

## Csv

Read rows.
"""

HTML = """<!doctype html><html><head><title>The  page</title><style>p {}</style></head>
<body><nav>Menu <a href="#">home</a></nav>
<p>First <b>bold</b> words
<h2>Zip &amp; more</h2><p>Open<br>it</p>
<script>let x = "<p>no</p>";</script>
<table><tr><th>a<th>b<tr><td>1<td>2</table>
<footer>imprint</footer></body></html>
"""


def passages(source, out):
    done = convert(source, out=out)
    return [(passage.title, passage.text) for passage in BeirFolder(out).passages()], done


def test_markdown_becomes_one_passage_a_section(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "guide.md").write_text(MARKDOWN)

    found, done = passages(tmp_path / "in", tmp_path / "out")

    assert found == [
        ("guide", "Before any heading."),
        (
            "Zip files",
            'Open an archive & list it.\none\ntwo\nzipfile.ZipFile("x")\na b\n1 2\nraw markup',
        ),
        ("Csv", "Read rows."),
    ]
    assert done.dropped == {"headings without text": 1}
    assert done.counts.queries == 0
    assert done.read_as == "documents: files .md (1)"


def test_html_becomes_one_passage_a_section_without_scripts_and_menus(tmp_path):
    (tmp_path / "page.html").write_text(HTML)

    found, _ = passages(tmp_path / "page.html", tmp_path / "out")

    assert found == [("The page", "First bold words"), ("Zip & more", "Open it\na b\n1 2")]


def test_long_sections_are_cut_between_paragraphs(tmp_path):
    paragraphs = [f"{letter} " * 40 for letter in "abcd"] + ["e " * (2 * MAX_WORDS + 1)]
    (tmp_path / "notes.txt").write_text("\n\n".join(paragraphs))

    found, _ = passages(tmp_path / "notes.txt", tmp_path / "out")

    counts = [[text.split().count(letter) for letter in "abcde"] for _, text in found]
    # Two pieces of a hundred e are the same text.
    assert counts == [[40, 40, 0, 0, 0], [0, 0, 40, 40, 0], [0, 0, 0, 0, 100], [0, 0, 0, 0, 1]]
    assert {title for title, _ in found} == {"notes"}


def test_files_in_folders_are_read_and_hidden_and_other_ones_left(tmp_path):
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    (source / ".git").mkdir()
    (source / ".git" / "x.md").write_text("hidden")
    (source / "deep" / "b.md").write_text("# Same\n\ntext")
    (source / "a.MD").write_text("# Same\n\ntext")
    (source / "picture.png").write_bytes(b"\x89PNG")
    (source / "package.json").write_text("{}")

    found, done = passages(source, tmp_path / "out")

    assert found == [("Same", "text")]
    assert done.dropped["files that are not documents"] == 2
    assert done.dropped["duplicate sections"] == 1


def test_a_document_of_another_encoding_is_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.md").write_text("# A\n\nfine")
    (tmp_path / "in" / "b.md").write_bytes("# A\n\ncaf\xe9".encode("latin-1"))
    with pytest.raises(
        DataError, match=r"b.md, line 3: expected UTF-8 text, got .* at byte 4 of the line"
    ):
        convert(tmp_path / "in", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_without_text_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"in: expected documents .*, got none"):
        convert(tmp_path / "in", out=tmp_path / "out", format="documents")
    (tmp_path / "in" / "a.md").write_text("# Only a heading\n")
    with pytest.raises(DataError, match="in: the documents contain no text"):
        convert(tmp_path / "in", out=tmp_path / "out")
    with pytest.raises(DataError, match="no such folder"):
        convert(tmp_path / "none", out=tmp_path / "out", format="documents")
