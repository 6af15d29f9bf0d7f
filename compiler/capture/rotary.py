"""Rotary modules whose frequencies change with the longest position, held at the frequencies they start with.

In: a model built on the meta device. Out: the number of positions up to which the held frequencies are exact (None: no limit).
`dynamic` recomputes its frequencies only beyond the trained context, `longrope` switches from its short to its long factors
there; below it both are constant, and what is captured is exact. Knows nothing of graphs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

#: rope types that look at the positions of the whole batch before they rotate anything
CHANGING = ("dynamic", "longrope")


def hold_rotary(model: nn.Module) -> int | None:
    """Hold every changing rotary module of `model` at its starting frequencies; the limit of positions this is exact for."""
    limits = [limit for module in model.modules() if (limit := _hold(module)) is not None]
    return min(limits, default=None)


def _hold(module: Any) -> int | None:
    """One module: its rope type (one, or one by layer type) is renamed so that its forward no longer updates anything."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, str):
        if not _changes(kinds):
            return None
        module.rope_type = "default"
        return _limit(module, module.config.rope_parameters, kinds)
    if not isinstance(kinds, dict) or not any(map(_changes, kinds.values())):
        return None
    limits = [_limit(module, module.config.rope_parameters[layer], k) for layer, k in kinds.items() if _changes(k)]
    module.rope_type = {layer: "default" if _changes(k) else k for layer, k in kinds.items()}
    return min(limits)


def _changes(kind: object) -> bool:
    return isinstance(kind, str) and any(name in kind for name in CHANGING)


def _limit(module: Any, parameters: Any, kind: str) -> int:
    original = parameters.get("original_max_position_embeddings") if kind == "longrope" else None
    return int(original or getattr(module, "original_max_seq_len", None) or module.config.max_position_embeddings)
