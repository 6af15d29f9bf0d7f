"""LoRA adapters (PEFT directories), merged lazily when a weight is written: base + scale * B @ A.

In: adapter_config.json and adapter_model.safetensors (header only). Out: weight expressions. Adapters of
another kind are refused. Method: "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilewright.ir.errors import RefusedError, UnsupportedError
from tilewright.ir.graph.core import Apply, Stored, WeightExpr
from tilewright.ir.types import TensorType
from tilewright.ir.weights.safetensors import SafeTensors
from tilewright.ir.weights.sources import ADAPTER
from tilewright.user_files import read_text

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(
    r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.default)?(?:\.weight)?$"
)


@dataclass(frozen=True)
class Pair:
    """The two factors of one parameter: A [r, K] and B [N, r], with the scale of their product."""

    a: Stored
    b: Stored
    scale: float
    shape: tuple[int, int]
    embedding: bool


@dataclass
class Adapter:
    """Pairs by parameter name. `flipped`: the base weights are [in, out] (PEFT's `fan_in_fan_out`)."""

    where: str
    pairs: Mapping[str, Pair]
    flipped: bool
    used: set[str] = field(default_factory=set)

    def merge(self, name: str, type: TensorType, expr: WeightExpr) -> tuple[TensorType, WeightExpr]:
        """The parameter with its pair added, in f32; as it is if it has none."""
        if name not in self.pairs:
            return type, expr
        pair = self.pairs[name]
        self.used.add(name)
        turned = self.flipped and not pair.embedding
        expected = tuple(reversed(type.shape)) if turned else type.shape
        if pair.shape != expected:
            message = f"the adapter changes {name!r} as {list(pair.shape)}, the model has {list(expected)}"
            raise RefusedError(
                message, f"{self.where}/{FILE}: {pair.a.key}", "the adapter belongs to a different model"
            )
        base = _turn(expr) if turned else expr
        a, b = (_turn(pair.b), _turn(pair.a)) if pair.embedding else (pair.a, pair.b)
        merged: WeightExpr = Apply("lora", (base, a, b), (("scale", pair.scale),))
        return TensorType("f32", type.shape), _turn(merged) if turned else merged

    def check_used(self) -> None:
        """RefusedError if a pair of the adapter found no parameter."""
        left = sorted(set(self.pairs) - self.used)
        if left:
            message = (
                f"the adapter changes {left[0]!r} and {len(left) - 1} more, which the model does not have"
            )
            raise RefusedError(message, self.where, "the adapter belongs to a different model")


def _turn(e: WeightExpr) -> WeightExpr:
    return Apply("transpose", (e,), (("perm", (1, 0)),))


def open_adapter(directory: Path) -> Adapter:
    """Read an adapter's config and header. RefusedError for a damaged one, UnsupportedError for one that is
    not plain LoRA."""
    config = _config(directory)
    entries = SafeTensors(directory / FILE).entries
    sides: dict[str, dict[str, str]] = {}
    embeddings: set[str] = set()
    for key in entries:
        found = _KEY.match(key)
        if found is None:
            hint = "merge the adapter with PEFT first"
            raise UnsupportedError(f"tensor {key!r} is not a LoRA factor", str(directory / FILE), hint)
        sides.setdefault(found["module"], {})[found["side"]] = key
        if found["kind"]:
            embeddings.add(found["module"])
    pairs: dict[str, Pair] = {}
    for module, keys in sides.items():
        if set(keys) != {"A", "B"}:
            raise RefusedError(
                f"only one LoRA factor for {module!r}", str(directory / FILE), "the adapter is incomplete"
            )
        shapes = tuple(entries[keys[s]].shape for s in "AB")
        pairs[f"{module}.weight"] = _pair(
            config, module, keys, shapes, module in embeddings, str(directory / FILE)
        )
    return Adapter(str(directory), pairs, bool(config.get("fan_in_fan_out")))


def _pair(
    config: Mapping[str, Any], module: str, keys: Mapping[str, str], shapes: tuple[tuple[int, ...], ...],
    embedding: bool,
    where: str,
) -> Pair:  # fmt: skip
    a, b = shapes
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise RefusedError(
            f"factors of {module!r} are {list(a)} and {list(b)}; expected [r, in] and [out, r]", where
        )
    rank = a[0]
    alpha = _patterned(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    shape = (a[1], b[0]) if embedding else (b[0], a[1])
    stored = [Stored(f"{ADAPTER}{FILE}", keys[s]) for s in "AB"]
    return Pair(stored[0], stored[1], float(scale), shape, embedding)


def _patterned(patterns: Mapping[str, Any] | None, module: str, default: Any) -> float:
    """PEFT's rule: the first pattern that matches the end of the module's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return float(default)


def _config(directory: Path) -> Mapping[str, Any]:
    path = directory / CONFIG
    if not path.exists():
        raise RefusedError(f"no {CONFIG}", str(directory), "pass a directory saved by PEFT")
    text = read_text(path, "a directory saved by PEFT")
    try:
        config = json.loads(text)
        assert isinstance(config, dict)
    except (ValueError, AssertionError, RecursionError) as e:
        raise RefusedError(
            f"cannot read it as a JSON object: {e}", str(path), "the file is damaged"
        ) from None
    wrong = [
        k
        for k in ("use_dora", "modules_to_save", "target_parameters", "lora_bias", "use_qalora")
        if config.get(k)
    ]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or wrong:
        what = ", ".join(wrong) or (f"peft_type {config.get('peft_type')}, bias {config.get('bias', 'none')}")
        raise UnsupportedError(
            f"an adapter other than plain LoRA ({what})", str(path), "merge it with PEFT first"
        )
    return config
