"""Rotary modules whose frequencies change with the length of a sequence, made functions of that length.

In: a model built without its tensors. Out: the same model, whose `longrope` modules choose their long or short factors, and whose
`dynamic` modules compute their base, by each sequence's own length (`tilewright::sequence_length`) instead of the longest of the
batch; and what must be known of them. Transformers' own formulas are called, not copied. Knows nothing of graphs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

#: rope types that look at the positions of the whole batch before they rotate anything
CHANGING = ("dynamic", "longrope")
#: (lengths [B, S, 1], frequencies up to the limit) -> frequencies [B, S, D/2]
Frequencies = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Lengths:
    """`switches`: lengths beyond which other factors hold for the whole sequence, keys in a cache included. `limit`: up to how
    many positions what is captured is exact (None: any number)."""

    switches: tuple[int, ...] = ()
    limit: int | None = None


# ------------------------------------------------------------------ the op
def _sequence_length(positions: torch.Tensor) -> torch.Tensor:
    """[B, S] -> [B, S]: each sequence's largest position plus one, at all its tokens."""
    return (positions.amax(-1, keepdim=True) + 1).expand(positions.shape).contiguous()


sequence_length = torch.library.custom_op("tilewright::sequence_length", _sequence_length, mutates_args=())
sequence_length.register_fake(torch.empty_like)


# ------------------------------------------------------------------ following
def follow_lengths(model: nn.Module) -> Lengths:
    """Make every changing rotary module of `model` follow the length of each sequence."""
    switches, limits = set[int](), list[int]()
    for module in model.modules():
        kinds = _kinds(module)
        own = copy.deepcopy(module) if kinds else None
        for layer, kind in kinds:
            original = _original(module, layer, kind)
            if not _follows(module, own, layer, kind, original):
                limits.append(original)
            elif kind == "longrope":
                switches.add(original)
    return Lengths(tuple(sorted(switches)), min(limits, default=None))


def _kinds(module: Any) -> list[tuple[str | None, str]]:
    """The changing rope types of a module by layer type (None: it has one for all layers)."""
    kinds = getattr(module, "rope_type", None)
    by_layer = kinds if isinstance(kinds, dict) else {None: kinds}
    return [(layer, k) for layer, k in by_layer.items() if isinstance(k, str) and any(name in k for name in CHANGING)]


def _parameters(module: Any, layer: str | None) -> Any:
    every = module.config.rope_parameters
    return every if layer is None else every[layer]


def _original(module: Any, layer: str | None, kind: str) -> int:
    given = _parameters(module, layer).get("original_max_position_embeddings") if kind == "longrope" else None
    return int(given or getattr(module, "original_max_seq_len", None) or module.config.max_position_embeddings)


def _follows(module: Any, own: Any, layer: str | None, kind: str, original: int) -> bool:
    """Whether the module now follows lengths; if what it then computes is not what its `own` code does, it stays held at the
    frequencies it starts with."""
    _still(module, layer)
    try:
        frequencies = _longrope(module, layer, original) if kind == "longrope" else _dynamic(module, layer, original)
    except (TypeError, KeyError, AttributeError):
        return False
    held, name = module.forward, _buffer(layer)

    def forward(x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None) -> Any:
        more = {} if layer_type is None else {"layer_type": layer_type}
        if layer_type != layer:
            return held(x, position_ids, **more)
        with _instead(module, name, frequencies(sequence_length(position_ids)[..., None])):
            return held(x, position_ids, **more)

    module.forward = forward
    if _agree(own, module, layer, original):
        return True
    module.forward = held
    return False


def _still(module: Any, layer: str | None) -> None:
    """The module's own code is not to update anything any more."""
    if layer is None:
        module.rope_type = "default"
    else:
        module.rope_type = {**module.rope_type, layer: "default"}


def _buffer(layer: str | None) -> str:
    return "inv_freq" if layer is None else f"{layer}_inv_freq"


@contextmanager
def _instead(module: Any, name: str, value: torch.Tensor) -> Iterator[None]:
    """A buffer replaced for one call: positions are multiplied by whatever broadcasts against them."""
    held = module._buffers[name]
    module._buffers[name] = value
    try:
        yield
    finally:
        module._buffers[name] = held


def _longrope(module: Any, layer: str | None, original: int) -> Frequencies:
    """The long factors for sequences longer than the original context, the short ones up to it."""
    short = getattr(module, _buffer(layer))
    long, _ = _formula("longrope")(module.config, "cpu", seq_len=original + 1, **_layer(layer))
    name = f"{_buffer(layer)}_long"
    module.register_buffer(name, long, persistent=False)
    return lambda length: torch.where(length > original, getattr(module, name), short)


def _dynamic(module: Any, layer: str | None, original: int) -> Frequencies:
    """A base that grows with the length beyond the original context."""
    short, formula = getattr(module, _buffer(layer)), _formula("dynamic")
    return lambda length: torch.where(length > original, formula(module.config, "cpu", seq_len=length, **_layer(layer))[0], short)


def _formula(kind: str) -> Callable[..., Any]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found: Callable[..., Any] = ROPE_INIT_FUNCTIONS[kind]
    return found


def _layer(layer: str | None) -> dict[str, str]:
    return {} if layer is None else {"layer_type": layer}


def _agree(own: Any, followed: Any, layer: str | None, original: int) -> bool:
    """Whether both give the same tables for sequences around the limit and far beyond it, each on its own."""
    x = torch.zeros(1)
    for length in (original - 1, original, original + 1, 2 * original + 3):
        positions = torch.arange(max(length - 4, 0), length)[None]
        with torch.no_grad():
            want = copy.deepcopy(own).forward(x, positions, **_layer(layer))
            got = followed.forward(x, positions, **_layer(layer))
        if any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(want, got, strict=True)):
            return False
    return True
