"""What a command takes, as far as a recipe must know it to check a stage before it starts."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Type = Literal["int", "float", "text", "flag"]

_TYPES: dict[Type, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "text": ((str,), "a text"),
    "flag": ((bool,), "true or false"),
}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option or argument of a command.

    Args:
        type: What a value must be.
        words: How the command line writes it (``--steps``); for flags the word of true, and of
            false where there is one. Empty for arguments, which stand by position.
        repeated: Whether it takes a list.
        required: Whether the command refuses to go without it.
        choices: The allowed texts, empty for any.
        least: Least number, None for no bound.
        most: Largest number, None for no bound.
    """

    type: Type
    words: tuple[str, ...] = ()
    repeated: bool = False
    required: bool = False
    choices: tuple[str, ...] = ()
    least: int | float | None = None
    most: int | float | None = None

    def problem(self, value: Any) -> str:
        """Return what is wrong with a value, an empty text if nothing is."""
        if self.repeated:
            if not isinstance(value, list):
                return f"expected a list, got {value!r}"
            found = [self._problem(item) for item in value]
            return next((problem for problem in found if problem), "")
        return self._problem(value)

    def _problem(self, value: Any) -> str:
        kinds, name = _TYPES[self.type]
        if not isinstance(value, kinds) or (isinstance(value, bool) and self.type != "flag"):
            return f"expected {name}, got {value!r}"
        if self.choices and value not in self.choices:
            return f"expected one of {', '.join(self.choices)}, got '{value}'"
        number: Any = value
        if self.least is not None and number < self.least:
            return f"expected at least {self.least:g}, got {value}"
        if self.most is not None and number > self.most:
            return f"expected at most {self.most:g}, got {value}"
        return ""

    def arguments(self, value: Any) -> list[str]:
        """Return the words of a command line that set this option to a checked value."""
        if self.type == "flag":
            word = self.words[0] if value else (*self.words, "")[1]
            return [word] if word else []
        values = value if self.repeated else [value]
        if not self.words:
            return [str(item) for item in values]
        return [word for item in values for word in (self.words[0], str(item))]


Options = Mapping[str, Option]
"""A command's options by the names that recipes use (``batch_size``), arguments first."""


def unknown(name: str, known: list[str]) -> str:
    """Return the problem of a name that is not known, with the nearest that is."""
    near = difflib.get_close_matches(name, known, n=1)
    return "unknown setting" + (f", did you mean '{near[0]}'?" if near else "")
