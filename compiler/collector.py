"""Python's cyclic garbage collector, out of the way of work that makes many objects and little garbage.

Capture and rendering make some million objects that stay; the collector looks through all of them, and
PyTorch's own, again and again: a fifth of their time. Independent of what runs inside.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """No automatic collection inside; nested uses count as one."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def collected_once() -> Iterator[None]:
    """As `collector_paused`; what became garbage inside is freed at the end, without a look at what was there
    before."""
    with collector_paused():
        gc.freeze()
        try:
            yield
        finally:
            gc.collect()
            gc.unfreeze()
