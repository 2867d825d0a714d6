"""Types checked at each call, and shapes where a function names shapes.

jaxtyping's import hook wraps every function twice and binds its arguments again at each call, so
that the sizes in its shapes agree. Most functions name no shape: for these the type checker alone
finds the same, in less than half of the time.
"""

import dataclasses
import inspect
from typing import Any, get_args, get_type_hints

import jaxtyping

_with_shapes = jaxtyping.jaxtyped


def check_shapes_where_named() -> None:
    """Have the import hook use :func:`shapes_where_named` for all that is imported from now on."""
    jaxtyping.jaxtyped = shapes_where_named


def shapes_where_named(given: Any = None, *, typechecker: Any) -> Any:
    """Return a function or class that checks its types, and its shapes if it has any."""
    if given is None:
        return lambda fn: shapes_where_named(fn, typechecker=typechecker)
    if inspect.isclass(given):
        if dataclasses.is_dataclass(given) and "__init__" in vars(given):
            given.__init__ = shapes_where_named(given.__init__, typechecker=typechecker)
        return given
    if not inspect.isfunction(given):
        return _with_shapes(given, typechecker=typechecker)
    written = given.__annotations__
    found = {name: _resolved(name, hint, given) for name, hint in written.items()}
    if any(map(_has_shape, found.values())):
        return _with_shapes(given, typechecker=typechecker)
    given.__annotations__ = found
    checked = typechecker(given)
    # Others read them too, typer among them.
    given.__annotations__ = checked.__annotations__ = written
    return checked


def _resolved(name: str, hint: Any, given: Any) -> Any:
    """Return what a written type means; Any where its name is not there yet, as jaxtyping does."""

    def holder() -> None: ...

    holder.__annotations__ = {name: hint}
    try:
        return get_type_hints(holder, given.__globals__, include_extras=True)[name]
    except Exception:
        return Any


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, list | tuple):
        return any(map(_has_shape, hint))
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shape, get_args(hint)))
