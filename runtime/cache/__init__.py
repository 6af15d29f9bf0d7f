"""Cache policies: which tokens of a sequence keep their keys and values when the cache has a budget.

In: text such as `h2o(budget=0.2)`. Out: a policy, and the manager that applies it to a session's sequences.
Independent of how the cache is stored: policies see it through `CacheAccess`.
"""

from __future__ import annotations

from tilewright.runtime.cache.access import CacheAccess
from tilewright.runtime.cache.manager import CacheManager, Progress
from tilewright.runtime.cache.policy import CachePolicy, Protected
from tilewright.runtime.cache.registry import known_policies, parse_policy, register_policy

__all__ = [
    "CacheAccess",
    "CacheManager",
    "CachePolicy",
    "Progress",
    "Protected",
    "known_policies",
    "parse_policy",
    "register_policy",
]
