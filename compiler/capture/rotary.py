"""Rotary modules whose frequencies change with the length of a sequence, made functions of that length.

In: a model built without its tensors. Out: the same model, whose `longrope` modules choose their long or
short factors, and whose `dynamic` modules compute their base, by each sequence's own length
(`tilewright::sequence_length`) instead of the longest of the batch; and what must be known of them.
Transformers' own formulas are called, not copied. Independent of graphs.
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
#: lengths [B, S, 1] -> frequencies [B, S, D/2]
Frequencies = Callable[[torch.Tensor], torch.Tensor]
#: (x, positions [B, S]) -> cos and sin [B, S, …]
Tables = Callable[..., Any]
#: (module, its own forward, layer type, rope type, original context) -> a forward that follows
Way = Callable[[Any, Tables, "str | None", str, int], Tables]


@dataclass(frozen=True)
class Lengths:
    """`switches`: lengths beyond which other factors hold for the whole sequence, keys in a cache included.
    `limit`: up to how many positions what is captured is exact (None: any number)."""

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
    return [
        (layer, k)
        for layer, k in by_layer.items()
        if isinstance(k, str) and any(name in k for name in CHANGING)
    ]


def _parameters(module: Any, layer: str | None) -> Any:
    every = module.config.rope_parameters
    return every if layer is None else every[layer]


def _original(module: Any, layer: str | None, kind: str) -> int:
    given = _parameters(module, layer).get("original_max_position_embeddings") if kind == "longrope" else None
    return int(
        given or getattr(module, "original_max_seq_len", None) or module.config.max_position_embeddings
    )


def _follows(module: Any, own: Any, layer: str | None, kind: str, original: int) -> bool:
    """Whether the module now follows lengths; if what it then computes is not what its `own` code does, it
    stays held at the frequencies it starts with."""
    _still(module, layer)
    held = module.forward
    ways: tuple[Way, ...] = (_by_frequencies, _by_phases) if kind == "longrope" else (_by_frequencies,)
    for way in ways:
        try:
            module.forward = _only_for(layer, held, way(module, held, layer, kind, original))
            if _agree(own, module, layer, original):
                return True
        except (TypeError, KeyError, AttributeError, RuntimeError):
            continue
    module.forward = held
    return False


def _only_for(layer: str | None, held: Tables, followed: Tables) -> Tables:
    """A forward that follows for one type of layers (None: it has one for all)."""

    def forward(x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None) -> Any:
        return (followed if layer_type == layer else held)(x, position_ids, **_layer(layer_type))

    return forward


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
    return lambda length: torch.where(
        length > original, formula(module.config, "cpu", seq_len=length, **_layer(layer))[0], short
    )


def _formula(kind: str) -> Callable[..., Any]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found: Callable[..., Any] = ROPE_INIT_FUNCTIONS[kind]
    return found


def _layer(layer: str | None) -> dict[str, str]:
    return {} if layer is None else {"layer_type": layer}


def _by_frequencies(module: Any, held: Tables, layer: str | None, kind: str, original: int) -> Tables:
    """Tables from frequencies [B, S, D/2], which transformers' code multiplies by positions [B, S, 1]."""
    frequencies = (_longrope if kind == "longrope" else _dynamic)(module, layer, original)

    def followed(x: torch.Tensor, position_ids: torch.Tensor, **more: Any) -> Any:
        with _instead(module, _buffer(layer), frequencies(sequence_length(position_ids)[..., None])):
            return held(x, position_ids, **more)

    return followed


def _by_phases(module: Any, held: Tables, layer: str | None, kind: str, original: int) -> Tables:
    """Tables as the module's own code makes them for a sequence of just the original context and for a longer
    one; each sequence has one of them. For code that branches on the largest position (phimoe scales by
    it)."""

    def followed(x: torch.Tensor, position_ids: torch.Tensor, **more: Any) -> Any:
        beyond = sequence_length(position_ids)[..., None] > original
        with _largest_position(original):
            long = held(x, position_ids, **more)
        with _largest_position(original - 1):
            short = held(x, position_ids, **more)
        return tuple(torch.where(beyond, a, b) for a, b in zip(long, short, strict=True))

    return followed


@contextmanager
def _largest_position(value: int) -> Iterator[None]:
    """`torch.max` of positions is a number that code can branch on."""
    held = torch.max
    torch.max = lambda positions: value
    try:
        yield
    finally:
        torch.max = held


def _agree(own: Any, followed: Any, layer: str | None, original: int) -> bool:
    """Whether sequences around the limit and far beyond it, all in one batch, have the tables that each has
    alone."""
    x, lengths = torch.zeros(1), (original + 1, original - 1, 2 * original + 3, original)
    positions = torch.stack([torch.arange(n - 4, n).clamp(min=0) for n in lengths])
    with torch.no_grad():
        alone = [copy.deepcopy(own).forward(x, row[None], **_layer(layer)) for row in positions]
        together = followed.forward(x, positions, **_layer(layer))
    want = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(want, together, strict=True))
