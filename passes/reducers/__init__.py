"""Ways to reduce tokens, by name: importing this package registers all of them."""

from tilewright.passes.reducers import published
from tilewright.passes.reducers.base import Cut, Reducer, known_reducers, parse_reducer, register_reducer

__all__ = ["Cut", "Reducer", "known_reducers", "parse_reducer", "published", "register_reducer"]
