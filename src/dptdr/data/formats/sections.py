"""Split Markdown, HTML and plain text into sections: a heading and the text below it."""

import re
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt

from dptdr.data.formats.table_rows import text_lines

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_SKIPPED = frozenset({"script", "style", "noscript", "template", "svg", "nav", "footer"})
_INLINE = re.compile(
    "a|abbr|b|bdi|bdo|br|cite|code|data|del|dfn|em|font|i|img|input|ins|kbd|label|mark|q|s|samp|"
    "small|span|strong|sub|sup|td|th|time|tt|u|var|wbr"
)


class Section(NamedTuple):
    """A heading (empty before the first heading) and the text below it."""

    title: str
    paragraphs: Iterable[str]


def file_sections(path: Path) -> Iterator[Section]:
    """Yield the sections of a document; text before the first heading is titled by file name.

    Plain text files are streamed, with one section per paragraph.

    Raises:
        DataError: If the file cannot be read or is not UTF-8.
    """
    for section in _PARSERS[path.suffix.lower()](text_lines(path)):
        if section.title:
            yield section
        elif section.paragraphs:
            yield section._replace(title=path.stem)


def _text_sections(lines: Iterable[str]) -> Iterator[Section]:
    yield Section("", _text_paragraphs(lines))


def _text_paragraphs(lines: Iterable[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line.strip())
        elif paragraph:
            yield " ".join(paragraph)
            paragraph = []
    if paragraph:
        yield " ".join(paragraph)


def _markdown_sections(lines: Iterable[str]) -> Iterator[Section]:
    text = _FRONT_MATTER.sub("", "".join(lines).replace("\r\n", "\n"))
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    title = ""
    paragraphs: list[str] = []
    cells: list[str] | None = None
    for number, token in enumerate(tokens):
        if token.type == "heading_open":
            yield Section(title, paragraphs)
            title, paragraphs = _inline_text(tokens[number + 1]), []
        elif token.type == "inline" and tokens[number - 1].type != "heading_open":
            (paragraphs if cells is None else cells).append(_inline_text(token))
        elif token.type in {"fence", "code_block"}:
            paragraphs.append(token.content.strip())
        elif token.type == "html_block":
            paragraphs.extend(text for part in _html_sections([token.content]) for text in part[1])
        elif token.type == "tr_open":
            cells = []
        elif token.type == "tr_close":
            paragraphs.append(" ".join(cells or []))
            cells = None
    yield Section(title, paragraphs)


def _inline_text(token: Any) -> str:
    """Return the text of an inline token without its markup."""
    parts = []
    for child in token.children or ():
        if child.type in {"softbreak", "hardbreak"}:
            parts.append(" ")
        elif child.type in {"text", "code_inline", "image", "text_special"}:
            parts.append(child.content)
    return "".join(parts).strip()


def _html_sections(lines: Iterable[str]) -> Iterator[Section]:
    parser = _HtmlParser()
    for line in lines:
        parser.feed(line)
    parser.close()
    parser.end_section("")
    for number, (title, paragraphs) in enumerate(parser.sections):
        yield Section(title if number else parser.page_title, paragraphs)


class _HtmlParser(HTMLParser):
    """Collects sections, skipping scripts and navigation."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page_title = ""
        self.sections: list[tuple[str, list[str]]] = []
        self._title = ""
        self._paragraphs: list[str] = []
        self._words: list[str] = []
        self._skipped: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED:
            self._skipped.append(tag)
        if not _INLINE.fullmatch(tag):
            self._end_block()
        elif tag in {"br", "td", "th"}:
            self._words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            if tag == self._skipped[-1]:
                self._skipped.pop()
        elif tag in _HEADINGS:
            title = self._taken()
            self.end_section(title)
        elif tag == "title":
            self.page_title = self._taken()
        elif not _INLINE.fullmatch(tag):
            self._end_block()

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self._words.append(data)

    def end_section(self, next_title: str) -> None:
        """Finish the section and start the next one."""
        self._end_block()
        self.sections.append((self._title, self._paragraphs))
        self._title, self._paragraphs = next_title, []

    def _end_block(self) -> None:
        text = self._taken()
        if text:
            self._paragraphs.append(text)

    def _taken(self) -> str:
        text = " ".join("".join(self._words).split())
        self._words.clear()
        return text


_PARSERS: dict[str, Callable[[Iterable[str]], Iterator[Section]]] = {
    ".md": _markdown_sections,
    ".markdown": _markdown_sections,
    ".html": _html_sections,
    ".htm": _html_sections,
    ".txt": _text_sections,
}
SUFFIXES = tuple(_PARSERS)
"""Supported document suffixes."""
