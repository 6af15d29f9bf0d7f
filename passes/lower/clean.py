"""Removes unused tile values: emission requests some only so that their statistics are emitted early."""

from __future__ import annotations

from dataclasses import replace

from tilewright.ir.tile.core import For, Kernel, Let, Load, Pick, Stmt, Store, index_scalars


def drop_dead(kernel: Kernel) -> Kernel:
    """The kernel without values that no store, bound or used value depends on."""
    live: set[str] = set()
    body = _sweep(kernel.body, live)
    used = {s.buffer.split(".")[0] for s in _flat(body) if isinstance(s, Load | Store)}
    return replace(kernel, body=body, locals=tuple(b for b in kernel.locals if b.name in used))


def _flat(body: tuple[Stmt, ...]) -> list[Stmt]:
    out: list[Stmt] = []
    for s in body:
        out.append(s)
        if isinstance(s, For):
            out += _flat(s.body)
    return out


def _needs(s: Let | Load | Store) -> list[str]:
    out = list(s.args) if isinstance(s, Let | Load) else [s.value]
    if isinstance(s, Store):
        out += [i.tile for i in s.index if isinstance(i, Pick)] + list(index_scalars(s.index))
    if isinstance(s, Let):
        out += [n[1:] for _, v in s.attrs for n in getattr(v, "names", ()) if n.startswith("%")]
    return out


def _sweep(body: tuple[Stmt, ...], live: set[str]) -> tuple[Stmt, ...]:
    out: list[Stmt] = []
    for s in reversed(body):
        if isinstance(s, For):
            kept = _loop(s, live)
            if kept is not None:
                out.insert(0, kept)
        elif isinstance(s, Store) or s.name in live:
            live.update(_needs(s))
            out.insert(0, s)
    return tuple(out)


def _loop(s: For, live: set[str]) -> For | None:
    stores = any(isinstance(x, Store) for x in _flat(s.body))
    if not stores and not any(c.result in live for c in s.carries):
        return None
    for c in s.carries:
        live.update((c.init, c.yields))
    live.update(n[1:] for a in (s.lo, s.hi) for n in a.names if n.startswith("%"))
    return replace(s, body=_sweep(s.body, live))
