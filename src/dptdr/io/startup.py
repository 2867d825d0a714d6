"""Faster start-up."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Switch Python's cycle collector off while large libraries are imported or a model is loaded.

    It would look through all of their objects again and again, and free none of them: a quarter of
    the processor time of ``import dptdr; dptdr.load("minilm")``.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            if not gc.get_freeze_count():
                # Makes all objects old ones, so that the next collections look at new ones only.
                gc.freeze()
                gc.unfreeze()
            gc.enable()
