"""LSTM, GRU and plain recurrent layers: the inputs of all steps as one product, then `recurrent` over time.

In: PyTorch's operators for whole stacks of layers. Out: `linear` and `recurrent` for each layer and
direction. A graph that Dynamo captured calls functions, which AOT autograd would take apart into nodes for
every step: `keep_recurrent` puts an operator of our own in their place. Its backward pass is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from tilewright.capture.context import Capture, aten, imports
from tilewright.ir.graph.core import Apply
from tilewright.ir.ops.recurrent import GATES
from tilewright.ir.types import TensorType, as_dim

#: PyTorch's function for a kind of layer
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "lstm": torch.lstm, "gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu,
}  # fmt: skip


# ------------------------------------------------------------------ an operator of our own
def _layers(
    kind: str, x: Tensor, states: list[Tensor], parameters: list[Tensor], biases: bool, layers: int,
    both: bool, batch_first: bool,
) -> list[Tensor]:  # fmt: skip
    """As PyTorch's function without dropout: outputs of all steps, then the last states."""
    held = states if kind == "lstm" else states[0]
    found = FUNCTIONS[kind](x, held, parameters, biases, layers, 0.0, False, both, batch_first)
    return [t.clone() for t in found]


def _shapes(
    kind: str, x: Tensor, states: list[Tensor], parameters: list[Tensor], biases: bool, layers: int,
    both: bool, batch_first: bool,
) -> list[Tensor]:  # fmt: skip
    length = x.shape[1 if batch_first and x.ndim == 3 else 0]
    if isinstance(length, int) and length == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")  # as PyTorch's functions do
    y = x.new_empty((*x.shape[:-1], states[0].shape[-1] * (2 if both else 1)))
    return [y, *(x.new_empty(s.shape) for s in states)]


recurrent_layers = torch.library.custom_op("tilewright::recurrent_layers", _layers, mutates_args=())
recurrent_layers.register_fake(_shapes)


def _gradients(
    kind: str, x: Tensor, states: list[Tensor], parameters: list[Tensor], biases: bool, layers: int,
    both: bool, batch_first: bool, of_results: list[Tensor],
) -> list[Tensor]:  # fmt: skip
    """Of x, the states and the parameters, by PyTorch's own pass over the layers once more: autograd, which
    is switched off inside an operator, is switched on for it."""
    autograd = torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView
    with ExitStack() as stack:
        for key in autograd:
            stack.enter_context(torch._C._SetExcludeDispatchKeyGuard(key, False))
        stack.enter_context(torch.enable_grad())
        given = [t.detach().requires_grad_() for t in (x, *states, *parameters)]
        held = given[1 : 1 + len(states)]
        found = FUNCTIONS[kind](
            given[0], held if kind == "lstm" else held[0], given[1 + len(states) :], biases, layers, 0.0,
            True, both, batch_first,
        )  # fmt: skip
        return [g.clone() for g in torch.autograd.grad(found, given, of_results)]


def _gradient_shapes(
    kind: str, x: Tensor, states: list[Tensor], parameters: list[Tensor], *more: Any
) -> list[Tensor]:
    return [torch.empty_like(t) for t in (x, *states, *parameters)]


recurrent_gradients = torch.library.custom_op("tilewright::recurrent_gradients", _gradients, mutates_args=())
recurrent_gradients.register_fake(_gradient_shapes)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    kind, x, states, parameters, *rest = inputs
    ctx.save_for_backward(x, *states, *parameters)
    ctx.facts, ctx.counts = (kind, rest), (len(states), len(parameters))


def _backward(ctx: Any, of_results: list[Tensor]) -> tuple[Any, ...]:
    (kind, rest), (states, _) = ctx.facts, ctx.counts
    x, *held = ctx.saved_tensors
    gradients = recurrent_gradients(kind, x, held[:states], held[states:], *rest, of_results)
    of_x, *others = gradients
    return None, of_x, others[:states], others[states:], None, None, None, None


recurrent_layers.register_autograd(_backward, setup_context=_keep)


def keep_recurrent(gm: GraphModule) -> None:
    """Let a captured graph call our operator for every stack of layers without dropout between them."""
    for node in [n for n in gm.graph.nodes if n.op == "call_function"]:
        kind = next((k for k, f in FUNCTIONS.items() if node.target is f), None)
        if kind is None or len(node.args) != 9 or node.kwargs or not isinstance(node.args[2], Sequence):
            continue  # of packed sequences there are other arguments
        x, states, parameters, biases, layers, dropout, training, both, batch_first = node.args
        if training is not False and layers > 1 and dropout != 0:
            continue
        held = list(states) if isinstance(states, Sequence) else [states]
        node.target = torch.ops.tilewright.recurrent_layers.default
        node.args = (kind, x, held, list(parameters), biases, layers, both, batch_first)
    gm.recompile()


@imports("tilewright.recurrent_layers")
def layers_of(
    c: Capture, kind: str, x: str, states: Sequence[str], parameters: Sequence[str], biases: bool,
    layers: int, both: bool, batch_first: bool,
) -> tuple[str, ...]:  # fmt: skip
    return _Stack(c, kind, list(states), list(parameters), biases, layers, both).run(x, batch_first)


def _importer(kind: str) -> None:
    @aten(f"{kind}.input")
    def of_pytorch(
        c: Capture, x: str, states: Any, parameters: Sequence[str], biases: bool, layers: int,
        dropout: float, training: bool, both: bool, batch_first: bool,
    ) -> tuple[str, ...]:  # fmt: skip
        if training and dropout:
            raise c.no("dropout between layers in training is not supported", "call eval() first")
        held = list(states) if isinstance(states, list | tuple) else [states]
        return layers_of(c, kind, x, held, parameters, biases, layers, both, batch_first)


for _kind in GATES:
    _importer(_kind)


# ------------------------------------------------------------------ layers
@dataclass(frozen=True)
class _Stack:
    """Layers on each other. `states`: each [layers * directions, B, H]; `parameters`: per layer and direction
    the matrices of inputs and states, then their biases if there are any."""

    c: Capture
    kind: str
    states: list[str]
    parameters: list[str]
    biases: bool
    layers: int
    both: bool

    def run(self, x: str, batch_first: bool) -> tuple[str, ...]:
        """x [T, B, F] or [B, T, F]: outputs of all steps, and the last of each state."""
        c = self.c
        directions, each = 2 if self.both else 1, 4 if self.biases else 2
        if len(self.parameters) != each * self.layers * directions:
            raise c.no("projections of the state are not supported", "leave proj_size out")
        x = c.transpose(x, (1, 0, 2)) if batch_first else x
        last: list[tuple[str, ...]] = []
        for layer in range(self.layers):
            found = [self._direction(x, layer * directions + n, bool(n)) for n in range(directions)]
            last += [states for _, states in found]
            x = c.op("concat", *(y for y, _ in found), axis=2) if self.both else found[0][0]
        y = c.transpose(x, (1, 0, 2)) if batch_first else x
        return y, *(self._joined(list(s)) for s in zip(*last, strict=True))

    def _joined(self, parts: list[str]) -> str:
        return parts[0] if len(parts) == 1 else self.c.op("concat", *parts, axis=0)

    def _direction(self, x: str, n: int, back: bool) -> tuple[str, tuple[str, ...]]:
        """Outputs [T, B, H] and the last states [1, B, H] of one layer in one direction."""
        c, each = self.c, 4 if self.biases else 2
        w_in, w_state, *biases = self.parameters[n * each : (n + 1) * each]
        hidden, (steps, batch, _) = c.shape(w_state)[1], c.shape(x)
        bias_in, bias = biases if biases else (None, self._zeros(c.shape(w_state)[0], c.dtype(x)))
        gates = self._product(x, w_in, bias_in)
        first = [self._initial(s, n, batch, hidden) for s in self.states]
        s = c.op("recurrent", gates, _turned(c, w_state), bias, *first, kind=self.kind, reverse=back)
        outputs = self._part(s, 0, (0, steps) if back else (1, as_dim(steps + 1)))
        end = (0, 1) if back else (steps, as_dim(steps + 1))
        return outputs, tuple(self._part(s, k, end) for k in range(len(self.states)))

    def _product(self, x: str, w: str, bias: str | None) -> str:
        c = self.c
        if c.dtype(x) == "f32":
            return c.op("linear", x, w, *([bias] if bias else []))
        y = c.op("matmul", x, w, transpose_b=True)
        return c.op("add", y, bias) if bias else y

    def _zeros(self, size: Any, dtype: str) -> str:
        return self.c.expand(self.c.const(0.0, dtype), (size,))

    def _initial(self, states: str, n: int, batch: Any, hidden: Any) -> str:
        c = self.c
        found = states if c.shape(states)[0] == 1 else c.op("slice", states, axis=0, start=n, stop=n + 1)
        return c.reshape(found, (batch, hidden))

    def _part(self, s: str, state: int, steps: tuple[Any, Any]) -> str:
        """[steps, B, H] of one of the states [T + 1, states, B, H]."""
        c, (_, states, batch, hidden) = self.c, self.c.shape(s)
        found = c.op("slice", s, axis=0, start=steps[0], stop=steps[1])
        found = found if states == 1 else c.op("slice", found, axis=1, start=state, stop=state + 1)
        return c.reshape(found, (as_dim(steps[1] - steps[0]), batch, hidden))


def _turned(c: Capture, w: str) -> str:
    """A matrix [N, K] as [K, N]: of a weight, once and not at run time."""
    stored = c.b.weights.get(w[1:]) if w[0] == "@" else None
    if stored is None:
        return c.op("transpose", w, perm=(1, 0))
    n, k = stored.type.shape
    turned = TensorType(stored.type.dtype, (k, n), stored.type.encoding)
    return c.b.weight(f"{stored.name}.T", turned, Apply("transpose", (stored.source,), (("perm", (1, 0)),)))
