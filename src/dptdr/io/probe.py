"""The probe: a few numbers of the vector of a fixed text.

Fingerprints cover weights, tokenizer and pooling. Other settings in ``config.json``, such as the
activation, change vectors too; the probe tells by the result.
"""

from collections.abc import Sequence

PROBE_TEXT = "What makes one vector differ from another? 0123456789"
PROBE_SIZE = 8

# Of the largest number: rounding to bfloat16 stays below, another activation does not.
_TOLERANCE = 0.05


def same_probe(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two probes are of the same encoder; an unknown (empty) one is the same."""
    if not one or not other:
        return True
    if len(one) != len(other):
        return False
    scale = max(abs(number) for number in other)
    # A NaN is never near.
    return all(abs(a - b) <= _TOLERANCE * scale for a, b in zip(one, other, strict=True))
