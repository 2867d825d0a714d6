"""Find JSON objects with a key twice, of which every parser takes the last value in silence."""

import json
import re
from typing import Any

_KEY_END = re.compile(rb'"[ \t\r\n]*:')


class RepeatedKey(ValueError):
    """An object has a key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f"expected each key of a JSON object once, got {key[:100]!r} twice")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; the ``object_pairs_hook`` of Python's parser.

    Raises:
        RepeatedKey: If a key occurs twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedKey(next(name for name in names if names.count(name) > 1))
    return found


def check_keys(text: bytes, value: dict[str, Any]) -> None:
    """Check an object that was parsed by orjson, which does not tell.

    Only a text with more ends of keys than the object has keys is parsed again: one with a
    repeated key, or with something like an end of a key inside a string.

    Raises:
        RepeatedKey: If a key occurs twice.
        ValueError: If Python's parser rejects the text.
    """
    # Colons are counted much faster than ends of keys, and many texts have none.
    if text.count(b":") == len(value):
        return
    if len(_KEY_END.findall(text)) > _count_keys(value):
        json.loads(text, object_pairs_hook=unique_keys)


def _count_keys(value: Any) -> int:
    # Not recursive, because orjson takes deeper values than Python's stack.
    count, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            count += len(value)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return count
