"""Capture of a Hugging Face causal language model from its directory.

In: a directory with config.json and safetensors, maybe a LoRA adapter. Out: a module with one graph @forward
(`ids`, `pos` -> `logits`) whose weights are expressions over the files. The model is built on the meta
device: no tensor data is read or made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch._dynamo.exc import UserError
from torch.fx._lazy_graph_module import _use_lazy_graph_module

from tilewright.capture.attention import register_attention
from tilewright.capture.buffers import inline
from tilewright.capture.build import build_model
from tilewright.capture.checkpoint import WeightSource, expected_checkpoint, open_checkpoint
from tilewright.capture.configs import context_of, load_config, metadata_of
from tilewright.capture.custom import CUSTOM
from tilewright.capture.elements import RECIPE
from tilewright.capture.importer import import_program
from tilewright.capture.lora import Adapter, open_adapter
from tilewright.capture.own_attention import BUILT_FOR, own_attention_as_op
from tilewright.capture.positions import Table, position_table
from tilewright.capture.repeated import export_repeated
from tilewright.capture.rotary import Lengths, follow_lengths
from tilewright.ir.errors import RefusedError, TilewrightError, UnsupportedError
from tilewright.ir.graph.core import Module, WeightExpr
from tilewright.ir.types import SymbolRange, TensorType

#: shape of the example inputs: more than one sequence, so that a mask cannot broadcast unnoticed
EXAMPLE = (2, 16)
#: what the names of layers without softmax attention contain
OTHER_MIXERS = ("linear", "mamba", "conv", "recurrent")


def capture_directory(path: str | Path, *, adapter: str | Path | None = None, weights: bool = True) -> Module:
    """The module of a causal language model. Symbols B (sequences) and S (positions, up to the context).
    RefusedError for a directory that is damaged or does not fit its config, UnsupportedError for a model that
    has no exact form here. `weights=False`: the directory holds none yet; those that its config speaks of are
    taken to be there."""
    directory = Path(path)
    config = load_config(directory)
    found = open_checkpoint(directory) if weights else None
    program = export_model(config)
    dtype = str(metadata_of(directory, config, 1)["dtype"])
    checkpoint = found or expected_checkpoint(directory, program.model, dtype)
    lora = open_adapter(Path(adapter)) if adapter is not None else None
    source = WeightSource(checkpoint, program.model)
    meta = {**metadata_of(directory, config, program.context), "attention": program.attention}
    module = _import(program, source, lora, meta)
    if lora is not None:
        lora.check_used()
    return _with_limits(module, program.lengths)


def _with_limits(module: Module, lengths: Lengths) -> Module:
    """The module whose `meta` says for how many positions it has tables or rotary factors (and where), and
    from which lengths on other factors hold, as far as there are such."""
    table, meta = position_table(module), dict(module.meta)
    if lengths.limit is not None and (table is None or lengths.limit < table.count):
        table = Table(lengths.limit, "")
    if table is not None:
        meta |= {
            "context": min(int(str(meta["context"])), table.count),
            "positions": table.count,
            "table": table.where,
        }
    if lengths.switches:
        meta["switches"] = lengths.switches
    return replace(module, meta=tuple(meta.items()))


# ------------------------------------------------------------------ export
@dataclass(frozen=True)
class ExportedModel:
    """An exported model. `positions`: how many the traced code may be given; `context`: the model, one token
    at a time. `attention`: "attend" (one op a layer) or "plain" (its own arithmetic, with a causal mask)."""

    model: Any
    exported: Any
    positions: SymbolRange
    context: int
    attention: str
    lengths: Lengths


def export_model(config: Any) -> ExportedModel:
    """Export with attention as one op per layer: requested by name, or led there from the model's own code.
    What can do neither is exported with its own arithmetic and real masks."""
    reasons: list[str] = []
    for attention in (register_attention(), *BUILT_FOR):
        try:
            program = _export(config, attention, "attend")
        except Exception as e:  # any failure of a model's own code means the same: the next way is tried
            reasons.append(f"{attention}: {_first_line(e)}")
            continue
        found, expected = _attend_count(program.exported), attention_layers(config)
        if found == expected:
            return program
        reasons.append(f"{attention}: {found} attention calls were captured for {expected} attention layers")
    try:
        return _export(config, "eager", "plain")
    except TilewrightError:
        raise
    except Exception as e:
        last = _first_line(e)
        if all(
            r.partition(": ")[2] == last for r in reasons
        ):  # before any of the ways could matter: no such model is built
            hint = "correct its config, or report the model if transformers can build it"
            raise UnsupportedError(
                f"cannot be built: {last}", f"model type {config.model_type!r}", hint
            ) from e
        message = f"cannot be captured: {'; '.join(reasons)}; and as a plain module: {last}"
        raise UnsupportedError(message, f"model type {config.model_type!r}", "report the model") from e


def _first_line(e: Exception) -> str:
    return f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"


def _export(config: Any, attention: str, kind: str) -> ExportedModel:
    model = build_model(config, attention)
    lengths = follow_lengths(model)
    context = min(context_of(config), lengths.limit or context_of(config))
    own = own_attention_as_op(model) if kind == "attend" and attention in BUILT_FOR else nullcontext()
    with own:
        exported, positions = _ranged(model, context)
    return ExportedModel(model, exported, positions, context, kind, lengths)


def _ranged(model: Any, context: int) -> tuple[Any, SymbolRange]:
    try:
        return _traced(model, 1, context), SymbolRange(1, context)
    except UserError as e:
        if "Constraints violated" not in str(e) or context < 4:
            raise
    # one position, or as many as the model has tables for, is a case of its own in some models' code
    return _traced(model, 2, context - 1), SymbolRange(2, context - 1)


def _traced(model: Any, fewest: int, most: int) -> Any:
    shape = (EXAMPLE[0], min(EXAMPLE[1], most))
    ids, pos = (torch.zeros(shape, dtype=torch.int64) for _ in range(2))
    dims = {0: torch.export.Dim("B", min=1), 1: torch.export.Dim("S", min=fewest, max=most)}
    # Export makes some twenty graph modules on its way; Python code for each is a quarter of the time, and
    # never run.
    with torch.no_grad(), _as_program(model), _use_lazy_graph_module(True):
        return export_repeated(
            model,
            lambda: torch.export.export(model, (ids, pos), dynamic_shapes=(dims, dims), strict=False),
        )


@contextmanager
def _as_program(model: Any) -> Iterator[None]:
    """While open, `model(ids, pos)` gives logits. No wrapper module, so that parameters keep their names."""
    original = model.forward

    def forward(self: Any, ids: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(
            ids
        )  # given, so that transformers does not look for packed sequences in the positions
        logits: torch.Tensor = original(
            input_ids=ids, position_ids=pos, attention_mask=mask, use_cache=False
        ).logits
        return logits

    model.forward = MethodType(forward, model)
    try:
        yield
    finally:
        del model.forward


def _attend_count(exported: Any) -> int:
    return sum(1 for n in exported.graph.nodes if n.target is torch.ops.tilewright.attend.default)


def attention_layers(config: Any) -> int:
    """Layers with attention: all, but for those whose entry in `layer_types` names another mixer."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["attention"] * int(text.num_hidden_layers)
    return sum(not any(other in str(kind) for other in OTHER_MIXERS) for kind in kinds)


# ------------------------------------------------------------------ import
def _import(
    program: ExportedModel, source: WeightSource, lora: Adapter | None, meta: Mapping[str, object]
) -> Module:
    persistent = set(program.model.state_dict())

    def weight(name: str, tensor: torch.Tensor) -> tuple[TensorType, WeightExpr]:
        if name not in persistent:
            return inline(name, tensor)
        found = source.weight(name, tensor.shape)
        return found if lora is None else lora.merge(name, *found)

    def weight_name(name: str) -> str:
        """Tied parameters are one weight, unless an adapter changes one of them."""
        held = source.stored_name(name) or name
        return name if lora is not None and {name, held} & set(lora.pairs) else held

    symbols = {"B": SymbolRange(1, None), "S": program.positions}
    return import_program(
        program.exported, graph_name="forward", input_names=("ids", "pos"), result_names=("logits",),
        symbols=symbols,
        dims=_symbol_names(program.exported), weight=weight, meta=meta, custom=CUSTOM,
        weight_name=weight_name, table=RECIPE,
    )  # fmt: skip


def _symbol_names(exported: Any) -> dict[str, str]:
    """PyTorch's names of the two dynamic sizes. RefusedError if export fixed one of them."""
    node = next(n for n in exported.graph.nodes if n.op == "placeholder" and n.name == "ids")
    out: dict[str, str] = {}
    for size, name in zip(node.meta["val"].shape, ("B", "S"), strict=True):
        if isinstance(size, int):
            raise RefusedError(f"the model's code fixes {name} to {size}", "", "report the model")
        out[str(size.node.expr)] = name
    return out
