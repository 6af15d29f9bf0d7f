"""Recurrent layers: LSTM, GRU, with tanh and relu; several layers, both directions, the batch first."""

from __future__ import annotations

from typing import Any

import torch

from tests.compiler.small_modules.base import F32, F64, Case, Maker, case, x

#: gates of each kind, and states that it carries
KINDS: dict[Any, tuple[int, int]] = {
    torch.lstm: (4, 2),
    torch.gru: (3, 1),
    torch.rnn_tanh: (1, 1),
    torch.rnn_relu: (1, 1),
}
#: widths of inputs and states
WIDE, HIDDEN = 6, 5


def layers(
    kind: Any, shape: tuple[int, ...], layers: int = 1, both: bool = False, biases: bool = True,
    batch_first: bool = False, projected: int = 0,
) -> Case:  # fmt: skip
    """Of an input of this shape: its last axis is `WIDE` long."""
    (gates, states), directions = KINDS[kind], 2 if both else 1
    batch = shape[0 if batch_first else 1]
    hidden = projected or HIDDEN
    initial = [x(layers * directions, batch, hidden if n == 0 else HIDDEN, seed=n) for n in range(states)]
    parameters: list[Maker] = []
    for n in range(layers * directions):
        width = WIDE if n < directions else hidden * directions
        sizes = [(gates * HIDDEN, width), (gates * HIDDEN, hidden)]
        sizes += [(gates * HIDDEN,)] * 2 if biases else []
        sizes += [(projected, HIDDEN)] if projected else []
        parameters += [x(*s, lo=-1, hi=1, seed=10 * n + k) for k, s in enumerate(sizes)]

    def run(given: Any, *more: Any) -> Any:
        held = more[:states] if states > 1 else more[0]
        return kind(given, held, more[states:], biases, layers, 0.0, False, both, batch_first)

    refused = "projections of the state" if projected else ""
    return case(run, x(*shape), *initial, *parameters, of=(F32, F64), refused=refused, loose=4)


CASES: dict[str, Case] = {
    "lstm": layers(torch.lstm, (4, 3, WIDE)),
    "lstm of two layers in both directions": layers(torch.lstm, (3, 5, WIDE), 2, True, batch_first=True),
    "lstm without biases": layers(torch.lstm, (4, 2, WIDE), biases=False),
    "lstm with projections": layers(torch.lstm, (4, 3, WIDE), projected=3),
    "gru": layers(torch.gru, (4, 3, WIDE)),
    "gru of two layers in both directions": layers(torch.gru, (3, 5, WIDE), 2, True, batch_first=True),
    "rnn_tanh": layers(torch.rnn_tanh, (4, 1, WIDE), both=True),
    "rnn_relu": layers(torch.rnn_relu, (4, 3, WIDE), 2),
}
