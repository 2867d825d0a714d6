"""Read folders of Markdown, HTML and text files as a corpus without queries."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dptdr.data.formats.pairstore import PairStore, text_id
from dptdr.data.formats.sections import SUFFIXES, file_sections
from dptdr.data.formats.source_data import SourceData
from dptdr.errors import DataError
from dptdr.records import Passage

MAX_WORDS = 100
"""Maximum words per passage, as in DPR. Longer sections are split between paragraphs, because
encoders truncate long texts."""


def document_files(source: Path) -> list[Path]:
    """List the documents of a folder recursively, excluding hidden ones."""
    if source.is_file():
        return [source] if source.suffix.lower() in SUFFIXES else []
    return [path for path in _visible_files(source) if path.suffix.lower() in SUFFIXES]


def read_documents(source: Path) -> SourceData:
    """Read documents, with one passage per section and its heading as the title.

    Raises:
        DataError: If there are no documents, or they contain no text.
    """
    if not source.exists():
        raise DataError("no such folder", path=source)
    files = document_files(source)
    if not files:
        raise DataError(f"expected documents ({', '.join(SUFFIXES)}), got none", path=source)
    dropped: Counter[str] = Counter()
    if source.is_dir():
        dropped["files that are not documents"] = len(_visible_files(source)) - len(files)
    kinds = Counter(path.suffix.lower() for path in files)
    return SourceData(
        passages=_passages(files, dropped, source=source),
        queries=(),
        qrels={},
        read_as="files " + ", ".join(f"{kind} ({count:,})" for kind, count in kinds.items()),
        complete=True,
        dropped=dropped,
        files=files,
    )


def _visible_files(source: Path) -> list[Path]:
    return sorted(
        path
        for path in source.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
    )


def _passages(files: Sequence[Path], dropped: Counter[str], *, source: Path) -> Iterator[Passage]:
    seen = PairStore()
    empty = True
    for path in files:
        for section in file_sections(path):
            text = ""
            for text in _pieces(section.paragraphs):
                passage = Passage(text_id(f"{section.title}\0{text}"), text, section.title)
                empty = False
                if seen.add_passage(passage.id):
                    yield passage
                else:
                    dropped["duplicate sections"] += 1
            dropped["headings without text"] += not text
    if empty:
        raise DataError("the documents contain no text", path=source)


def _pieces(paragraphs: Iterable[str]) -> Iterator[str]:
    """Split a section into texts of at most MAX_WORDS words."""
    piece: list[str] = []
    length = 0
    for paragraph in paragraphs:
        words = paragraph.split()
        if piece and length + len(words) > MAX_WORDS:
            yield "\n".join(piece)
            piece, length = [], 0
        while len(words) > MAX_WORDS:
            yield " ".join(words[:MAX_WORDS])
            words = words[MAX_WORDS:]
            paragraph = " ".join(words)
        if words:
            piece.append(paragraph)
            length += len(words)
    if piece:
        yield "\n".join(piece)
