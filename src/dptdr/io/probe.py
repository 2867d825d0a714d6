"""The probe: the first few values of the vector of a fixed text.

Fingerprints cover weights, tokenizer and pooling. Other settings in ``config.json``, such as the
activation, also affect vectors; the probe detects such changes by their effect.
"""

import sys
from collections.abc import Sequence

PROBE_TEXT = "What makes one vector differ from another? 0123456789"
PROBE_SIZE = 8

# Relative to the largest value: above bfloat16 rounding, below a change of activation.
_TOLERANCE = 0.05


def is_probe(value: object) -> bool:
    """Check whether a JSON value is a probe: a list of finite numbers."""
    return isinstance(value, list) and all(
        type(number) in (int, float) and abs(number) <= sys.float_info.max for number in value
    )


def same_probe(one: Sequence[float], other: Sequence[float]) -> bool:
    """Check whether two probes match; an unknown (empty) probe matches any."""
    if not one or not other:
        return True
    if len(one) != len(other):
        return False
    scale = max(abs(number) for number in other)
    # NaN never matches.
    return all(abs(a - b) <= _TOLERANCE * scale for a, b in zip(one, other, strict=True))
