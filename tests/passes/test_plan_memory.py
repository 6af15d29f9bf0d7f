"""Live buffers never share bytes, for random plans, and the arena is no larger than necessary."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir.graph.core import Value
from tilewright.ir.plan.core import Call, Plan, PlanBuffer
from tilewright.ir.types import tensor
from tilewright.passes.plan_memory import ALIGN, place


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Calls that read some earlier buffers (or write one again) and make one or two; some buffers are never
    touched."""
    count = draw(st.integers(1, 14))
    sizes = draw(st.lists(st.integers(0, 5000), min_size=count, max_size=count))
    buffers = tuple(PlanBuffer(f"b{n}", tensor("f32", 8), size) for n, size in enumerate(sizes))
    calls, made = [], 0
    while made < count:
        new = min(draw(st.integers(1, 2)), count - made)
        old = draw(st.lists(st.integers(0, made - 1), max_size=3, unique=True)) if made else []
        names = [*(f"%b{n}" for n in old), *(f"%b{n}" for n in range(made, made + new))]
        calls.append(Call("k", ("%x", "@w", *names)))
        made += new
    calls += [Call("k", ("%x", f"%b{n}")) for n in draw(st.lists(st.integers(0, count - 1), max_size=4))]
    unused = tuple(PlanBuffer(f"u{n}", tensor("f32", 8), 64) for n in range(draw(st.integers(0, 2))))
    outputs = tuple(
        (f"y{n}", f"%b{n}") for n in draw(st.lists(st.integers(0, count - 1), max_size=3, unique=True))
    )
    return Plan("step", (Value("x", tensor("f32", 8)),), outputs, buffers + unused, tuple(calls))


def live(plan: Plan, name: str) -> set[int]:
    """The calls during which a buffer's bytes are needed: from its first use to its last, results to the end
    and after."""
    uses = [n for n, c in enumerate(plan.calls) if "%" + name in c.args]
    last = len(plan.calls) if "%" + name in {ref for _, ref in plan.outputs} else max(uses, default=-1)
    return set(range(min(uses), last + 1)) if uses else set()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(plans())
def test_live_buffers_never_overlap(plan: Plan) -> None:
    placed = place(plan)
    assert [(b.name, b.nbytes) for b in placed.buffers] == [(b.name, b.nbytes) for b in plan.buffers]
    for b in placed.buffers:
        assert b.offset >= 0 and b.offset % ALIGN == 0 and b.offset + b.nbytes <= placed.arena_bytes
    for a, b in combinations(placed.buffers, 2):
        if live(plan, a.name) & live(plan, b.name):
            assert a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset, (
                f"{a} and {b} share bytes"
            )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(plans())
def test_the_arena_is_at_most_all_buffers_and_at_least_the_fullest_call(plan: Plan) -> None:
    rounded = {b.name: -(-max(b.nbytes, 1) // ALIGN) * ALIGN for b in plan.buffers}
    spans = {name: live(plan, name) for name in rounded}
    fullest = max(
        sum(size for name, size in rounded.items() if n in spans[name]) for n in range(len(plan.calls) + 1)
    )
    assert fullest <= place(plan).arena_bytes <= sum(rounded.values())


def test_a_chain_takes_two_places() -> None:
    """%a makes %b makes %c …: what a call no longer needs is used again."""
    buffers = tuple(PlanBuffer(f"b{n}", tensor("f32", 16), 64) for n in range(9))
    calls = tuple(Call("k", (f"%b{n}", f"%b{n + 1}")) for n in range(8))
    placed = place(Plan("step", (), (("y", "%b8"),), buffers, calls))
    assert placed.arena_bytes == 128
    assert [b.offset for b in placed.buffers] == [0, 64] * 4 + [0]


def test_placing_twice_changes_nothing() -> None:
    buffers = tuple(PlanBuffer(f"b{n}", tensor("f32", 16), 64 * (n + 1)) for n in range(4))
    calls = tuple(Call("k", (f"%b{n}", f"%b{n + 1}")) for n in range(3))
    once = place(Plan("step", (), (("y", "%b3"),), buffers, calls))
    assert place(once) == once
