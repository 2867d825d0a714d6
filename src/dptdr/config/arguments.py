"""Check arguments of public functions against their annotations."""

import builtins
import functools
import inspect
import numbers
import os
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

from dptdr.errors import ConfigError
from dptdr.io.lines import LARGEST_INTEGER
from dptdr.io.processes import check_guarded

MAX_SEED = 2**32 - 1

_Function = TypeVar("_Function", bound=Callable[..., Any])


def checked(function: _Function) -> _Function:
    """Raise a ``ConfigError`` naming any argument that does not match its annotation.

    Plain types, literals, unions, sequences, mappings and tuples of them are checked. Classes
    imported only for type checking are compared by name, to avoid importing torch. Other
    annotations accept any value and are left to the function. Paths must be possible file names.
    """
    signature = inspect.signature(function)

    @functools.cache
    def annotations() -> dict[str, Any]:
        return {
            name: _resolved(parameter.annotation, function)
            for name, parameter in signature.parameters.items()
            if parameter.annotation is not parameter.empty
            and parameter.kind is not parameter.VAR_KEYWORD
        }

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        check_guarded()
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            annotation = annotations().get(name, Any)
            plain = value.item() if isinstance(value, np.generic) else value
            if not fits(plain, annotation):
                raise ConfigError(f"{name}: expected {_words(annotation)}, got {value!r:.100}")
            if name == "seed" and isinstance(plain, int):
                check_seed(plain)
            for path in _paths(plain, annotation):
                check_path(name, path)
            bound.arguments[name] = plain
        return function(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]


def fits(value: object, annotation: Any) -> bool:
    """Check whether a value matches an annotation, as far as possible."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(fits(value, member) for member in inner)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if annotation in (int, float):
        number = numbers.Integral if annotation is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if annotation in (None, types.NoneType):
        return value is None
    if origin is tuple and Ellipsis not in inner:
        return (
            isinstance(value, tuple | list)
            and len(value) == len(inner)
            and all(map(fits, value, inner))
        )
    if origin in (Sequence, list, Mapping, dict):
        return isinstance(value, origin) and _items_fit(value, inner)
    plain = inspect.isclass(annotation) and not getattr(annotation, "_is_protocol", False)
    if plain and origin is None and annotation is not Any:
        return isinstance(value, annotation)
    return True


def _items_fit(value: Any, inner: Sequence[Any]) -> bool:
    if isinstance(value, Mapping):
        return all(fits(key, inner[0]) and fits(item, inner[1]) for key, item in value.items())
    return not isinstance(value, str | bytes) and all(fits(item, inner[0]) for item in value)


def _paths(value: Any, annotation: Any) -> list[Path | str]:
    """List the paths in a value: where its annotation, or its items' annotation, has ``Path``."""
    if get_origin(annotation) is Sequence:
        return [path for item in value for path in _paths(item, get_args(annotation)[0])]
    return [value] if isinstance(value, str | Path) and Path in get_args(annotation) else []


def check_path(name: str, path: str | Path) -> None:
    """Reject a path that cannot exist.

    Raises:
        ConfigError: If it contains a NUL, is too long, or cannot be encoded.
    """
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise ConfigError(f"{name}: expected a path of plain Unicode, got {str(path)!r:.100}")
    if len(encoded) > 4095 or max(map(len, encoded.split(b"/"))) > 255:
        raise ConfigError(f"{name}: expected names of at most 255 bytes, got {str(path)!r:.100}")


def check_unicode(texts: Sequence[str]) -> None:
    """Reject texts with lone surrogates, as from bytes that are not UTF-8.

    Raises:
        ConfigError: Names the first such text.
    """
    for number, text in enumerate(texts, start=1):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"text {number} of {len(texts)}, {text[:60]!r}: expected valid Unicode, got "
                f"{text[error.start]!r} at character {error.start + 1}; decode it as UTF-8"
            ) from None


def check_counts(**counts: int | None) -> None:
    """Reject numbers that cannot be counts; ``None`` means the default.

    Raises:
        ConfigError: If one is not a whole number from 1 to 2,147,483,647.
    """
    for name, count in counts.items():
        if count is not None and (not fits(count, int) or count < 1):
            raise ConfigError(f"{name}: expected a whole number of at least 1, got {count!r}")
        if count is not None and count > LARGEST_INTEGER:
            raise ConfigError(f"{name}: expected at most {LARGEST_INTEGER:,}, got {count:,}")


def reject_unused_arguments(given: Mapping[str, object], why: str) -> None:
    """Reject options that were given but have no effect.

    Args:
        given: Option to its value; ``None`` or false if it was not given.
        why: Completes "has no effect".

    Raises:
        ConfigError: If there are any; names all.
    """
    idle = [name for name, value in given.items() if value]
    if idle:
        raise ConfigError("; ".join(f"{name}: has no effect {why}" for name in idle))


def check_seed(seed: int) -> None:
    """Reject a seed that some random generator does not accept.

    Raises:
        ConfigError: If it is not from 0 to 4,294,967,295.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed: expected a number from 0 to {MAX_SEED:,}, got {seed:,}")


def _resolved(annotation: Any, function: Callable[..., Any]) -> Any:
    """Evaluate an annotation; types imported only for type checking are :class:`_Named`."""
    if not isinstance(annotation, str):
        return annotation
    return eval(annotation, {}, _Names({**vars(builtins), **function.__globals__}))


class _Named(type):
    """Represents a class that is not imported; its instances are recognised by name."""

    def __instancecheck__(cls, value: object) -> bool:
        return cls.__name__ in {kind.__name__ for kind in type(value).__mro__}


class _Names(dict[str, Any]):
    def __missing__(self, name: str) -> _Named:
        return _Named(name, (), {})


def _words(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(member) for member in inner)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in inner)
    if origin is tuple:
        return f"({', '.join(map(_words, inner))})"
    if origin in (Sequence, list):
        return f"a list of {_words(inner[0])}"
    if origin in (Mapping, dict):
        return f"a dict of {_words(inner[0])} to {_words(inner[1])}"
    if annotation in (None, types.NoneType):
        return "None"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}
    return names.get(annotation) or str(getattr(annotation, "__name__", annotation))
