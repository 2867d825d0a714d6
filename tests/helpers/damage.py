"""Damage to files, as hypothesis draws it."""

import json

from hypothesis import strategies as st

DAMAGE = (
    st.sampled_from(["byte", "byte", "byte", "cut", "grow", "swap"]),
    st.integers(0, 4000),
    st.integers(0, 255),
)
"""Arguments of :func:`damage` after the content."""


def damage(content: bytes, kind: str, place: int, byte: int) -> bytes:
    """Return content with a byte changed, cut short, grown, or its halves swapped."""
    place = place % len(content)
    if kind == "cut":
        return content[:place]
    if kind == "grow":
        return content + bytes([byte]) * (place + 1)
    if kind == "swap":
        return content[place:] + content[:place]
    return content[:place] + bytes([byte]) + content[place + 1 :]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["../../x", "/etc/passwd", "00000.npy", "hnsw", "exact", 2**40, 10**9]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)


def exchange(text: str, where: int, value: object) -> str:
    """Return JSON with another value at one of its places, the whole document among them."""
    record = json.loads(text)
    found = list(_places(record))
    *parents, last = found[where % len(found)] or (None,)
    if last is None:
        return json.dumps(value)
    inner = record
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return json.dumps(record)


def _places(value, path=()):
    yield path
    children = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        yield from _places(child, (*path, key))
