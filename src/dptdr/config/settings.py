"""Help, bounds and choices of settings, declared on dataclass fields.

``batch_size: Annotated[int, Setting("Queries per step.", min=2)] = 32`` declares a field's help
text and bounds; a ``Literal`` type declares its choices. The command line derives its options from
these declarations, and :func:`from_values` validates user input against them.
"""

import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dptdr.errors import ConfigError

Config = TypeVar("Config")


@dataclass(frozen=True)
class Setting:
    """Help text, bounds and former names of a setting.

    Args:
        given_as: Command-line name, if it differs from the field's.
    """

    help: str
    min: int | float | None = None
    max: int | float | None = None
    above: int | float | None = None
    below: int | float | None = None
    was: tuple[str, ...] = ()
    given_as: str | None = None

    @property
    def range_note(self) -> str:
        """The bounds for a help text, such as ``x>=1``; empty without bounds."""
        low = f"{self.min:.10g}<=" if self.min is not None else ""
        low = f"{self.above:.10g}<" if self.above is not None else low
        high = f"<={self.max:.10g}" if self.max is not None else ""
        high = f"<{self.below:.10g}" if self.below is not None else high
        if low and not high:
            number, sign = low.rstrip("<="), ">=" if low.endswith("=") else ">"
            return f"x{sign}{number}"
        return f"{low}x{high}" if high else ""

    def fault(self, value: Any) -> str | None:
        """Describe the expected bounds, or return ``None`` if the number is within them."""
        # Comparisons with NaN are false, which rejects it.
        bounds = (
            (self.min, "at least", self.min is None or value >= self.min),
            (self.max, "at most", self.max is None or value <= self.max),
            (self.above, "above", self.above is None or value > self.above),
            (self.below, "below", self.below is None or value < self.below),
        )
        if isinstance(value, float) and math.isinf(value):
            return "a finite number"
        words = [f"{word} {bound:.10g}" for bound, word, _ in bounds if bound is not None]
        return None if all(good for *_, good in bounds) else " and ".join(words)


@dataclass(frozen=True)
class Declared:
    """A declared field: plain type, optionality, choices and default."""

    name: str
    type: type
    optional: bool
    repeated: bool
    choices: tuple[str, ...]
    default: Any
    setting: Setting

    def fault(self, value: Any) -> str | None:
        """Return "expected X, got Y", or ``None`` if the value is valid."""
        if value is None and self.optional:
            return None
        values = value if self.repeated and isinstance(value, list | tuple) else [value]
        if self.repeated and values is not value:
            return f"expected several values, got {value!r}"
        for item in values:
            if self.choices:
                if item not in self.choices:
                    return f"expected one of {', '.join(self.choices)}, got {item!r}"
                continue
            if not self._fits(item):
                return f"expected {self.type.__name__}, got {item!r}"
            if self.type in (int, float) and (fault := self.setting.fault(item)):
                return f"expected {fault}, got {item}"
        return None

    def plain(self, value: Any) -> Any:
        """Convert a valid value to the field's type."""
        if isinstance(value, list | tuple):
            return tuple(self.plain(item) for item in value)
        # NumPy's numbers are not JSON.
        return value if value is None or self.type not in (int, float) else self.type(value)

    def _fits(self, value: Any) -> bool:
        if isinstance(value, bool):
            return self.type is bool
        numbers: dict[type, Any] = {int: Integral, float: Real}
        return isinstance(value, numbers.get(self.type, self.type))


def declared(config: Any) -> dict[str, Declared]:
    """Return a config class's settings by name, in order."""
    hints = get_type_hints(config, include_extras=True)
    return {field.name: _declared(field, hints[field.name]) for field in fields(config)}


def _declared(field: Any, hint: Any) -> Declared:
    setting = Setting("")
    if get_origin(hint) is Annotated:
        hint, setting = get_args(hint)[:2]
    optional = get_origin(hint) in (Union, types.UnionType)
    if optional:
        (hint,) = (member for member in get_args(hint) if member is not type(None))
    repeated = get_origin(hint) is tuple
    if repeated:
        hint = get_args(hint)[0]
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    return Declared(
        name=field.name,
        type=str if choices else hint,
        optional=optional,
        repeated=repeated,
        choices=choices,
        default=None if field.default is MISSING else field.default,
        setting=setting,
    )


def faults(config: Any) -> list[str]:
    """Describe a config's invalid settings, one line each."""
    return [
        f"{name}: {fault}"
        for name, field in declared(type(config)).items()
        if (fault := field.fault(getattr(config, name))) is not None
    ]


def from_values(config: type[Config], values: Mapping[str, Any], *, what: str) -> Config:
    """Build a config from plain values, with defaults for missing ones.

    Args:
        config: The dataclass; its ``problems`` method, if any, is called too.
        what: Start of the error message, such as ``training settings``.

    Raises:
        ConfigError: If any value is invalid or any name unknown; lists every problem.
    """
    known = declared(config)
    wrong = unknown_names(set(values) - set(known))
    given: dict[str, Any] = {}
    for name in known.keys() & values.keys():
        fault = known[name].fault(values[name])
        if fault is None:
            given[name] = known[name].plain(values[name])
        else:
            wrong.append(f"{name}: {fault}")
    made = config(**given)
    problems = getattr(made, "problems", list)
    wrong += [problem for problem in problems() if problem not in wrong]
    if wrong:
        raise ConfigError(f"{what}: " + "; ".join(wrong))
    return made


def unknown_names(names: Iterable[str]) -> list[str]:
    """Describe each unknown setting in one line."""
    return [f"{name}: unknown setting" for name in sorted(names)]
