"""Choose the part of a docstring to use as a query."""

import re

MIN_QUERY_WORDS = 3
MAX_QUERY_WORDS = 40

_WORD = re.compile(r"[A-Za-z]{2,}")
_BOILERPLATE = re.compile(
    r"""^(
        see\b | same\ as\b | alias\b | an?\ alias\b | deprecated\b | internal\b | implements?\b
      | overrides?\b | overridden\b | undocumented\b | todo\b | fixme\b | inherit | refer\ to\b
      | this\ (method|function|class)\ is\ (deprecated|internal|not|for\ internal)
      | (private|helper|wrapper)\b | not\ implemented | copyright\b | generated\b | auto-?generated
      | usage\b | arguments?:| args:| parameters?\b | returns?: | examples?:? | notes?: | warning
      | \.\. | [-*=~#>|]
    )""",
    re.IGNORECASE | re.VERBOSE,
)
# Templates, and signatures that reveal the name.
_NO_PROSE = ("%(", "{", "->", ") --")
# `name(arguments) -> type`, which C functions and add_docstr put before the summary.
_SIGNATURE = re.compile(r"^[\w.]+\s*\([^()]*(\([^()]*\)[^()]*)*\)\s*(->\s*[\w\[\], .|()]+)?\s*\.?$")
_MARKUP = re.compile(r":[a-z:]+:`~?([^`<]*?)\s*(<[^`>]*>)?`|``?([^`]*)``?_{0,2}")


def is_signature(paragraph: str) -> bool:
    """Check whether a paragraph is a call signature rather than a sentence."""
    joined = " ".join(paragraph.split()).removesuffix(" --")
    return bool(_SIGNATURE.match(joined))


def as_query(paragraph: str) -> str | None:
    """Convert a paragraph to a query, or return None if it is unsuitable."""
    text = _MARKUP.sub(lambda match: match.group(1) or match.group(3) or "", paragraph)
    text = " ".join(text.split(">>>")[0].split())
    text = text.rstrip(": ")
    words = text.split()
    if not MIN_QUERY_WORDS <= len(words) <= MAX_QUERY_WORDS:
        return None
    if _BOILERPLATE.match(text) or any(mark in text for mark in _NO_PROSE):
        return None
    plain = sum(len(word) for word in _WORD.findall(text))
    if len(_WORD.findall(text)) < MIN_QUERY_WORDS or plain < 0.6 * len("".join(words)):
        return None
    return text


def cut(text: str, *, characters: int) -> str:
    """Truncate a text at the end of a line, or failing that of a word."""
    if len(text) <= characters:
        return text
    head = text[:characters]
    at = max(head.rfind("\n"), head.rfind(" ") if "\n" not in head else -1)
    return head[:at].rstrip() if at > characters // 2 else head.rstrip()
