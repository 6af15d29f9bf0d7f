"""`tilewright inspect`: what an artifact holds, read from its manifest. Executes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tilewright.cli.common import human_bytes, json_option, plugin_option, print_json, table
from tilewright.cli.inspect_task import about_task
from tilewright.ir.numbers import BITS
from tilewright.runtime.artifact import open_artifact, verify_artifact
from tilewright.runtime.manifest import (
    MANIFEST,
    WEIGHTS,
    FileEntry,
    Manifest,
    StateEntry,
    TensorEntry,
    WeightEntry,
)
from tilewright.runtime.structure import described

if TYPE_CHECKING:
    from tilewright.artifact.stages import Notes
    from tilewright.passes.base import Note
    from tilewright.passes.costs import Cost


@click.command("inspect")
@click.argument("artifact", metavar="MODEL.TW|DIR", type=click.Path())
@click.option("--recipe", help="For a DIR: the recipe to compile it with.")
@click.option("--verify", is_flag=True, help="Check the hash of every file, including the weights.")
@click.option(
    "--weights", "show_weights", is_flag=True, help="List every weight: its type, encoding, solver and bytes."
)
@click.option(
    "--notes", "show_notes", is_flag=True, help="List the rewrites that each pass made or declined."
)
@click.option(
    "--work",
    metavar="N",
    type=click.IntRange(1),
    help="Operations and bytes of weights, by kind of op, when every dynamic size is N (1: a step of one "
    "token).",
)
@click.option(
    "--context",
    metavar="N",
    type=click.IntRange(1),
    help="With --work: how many positions each token attends to.  [default: the model's whole context]",
)
@json_option
@plugin_option
def inspect_command(
    artifact: str,
    recipe: str | None,
    verify: bool,
    show_weights: bool,
    show_notes: bool,
    work: int | None,
    context: int | None,
    as_json: bool,
) -> None:
    """Signature, recipe, stages, kernels, bytes per part, bits per weight, targets: of an artifact, or of
    what a checkpoint directory, whose weights need not be there, would become."""
    of_folder = not (Path(artifact) / MANIFEST).exists() and (Path(artifact) / "config.json").exists()
    if of_folder and verify:
        raise click.UsageError(f"--verify is for an artifact; {artifact} is a checkpoint directory")
    if recipe and not of_folder:
        raise click.UsageError(f"--recipe is for a checkpoint directory, which {artifact} is not")
    if context and work is None:
        raise click.UsageError("--context is how many positions the tokens of --work N attend to: give both")
    found = outlined(artifact, recipe) if of_folder else opened(artifact, verify)
    m = found.manifest
    context = context or m.limits["context"]
    costs = {} if work is None else work_of(found.graphs(), work, context)
    if as_json:
        derived = {
            "bits_per_weight": round(m.bits_per_weight, 4),
            "parameters": m.parameters,
            "parts": parts(m),
        }
        more = {"work": {g: [asdict(c) for c in rows] for g, rows in costs.items()}} if costs else {}
        notes = {stage: [asdict(n) for n in some] for stage, some in found.notes.items()}
        print_json({**asdict(m), **derived, "notes": notes, "verified": verify, **more})
        return
    click.echo(report(found, show_weights))
    if show_notes:
        lines = [f"  {n}" for notes in found.notes.values() for n in notes]
        click.echo("\n".join(["notes", *(lines or ["  none"])]))
    for name, rows in costs.items():
        attended = f", {context} positions attended to" if context else ""
        click.echo(f"work of @{name}, every dynamic size {work}{attended}\n{table(work_rows(rows))}")
    if verify:
        click.echo("verified: every file, including the weights, has the hash in the manifest")


@dataclass(frozen=True)
class Inspected:
    """A manifest, what passes noted, and a function that gives the text of the fused graphs."""

    manifest: Manifest
    notes: Notes
    graphs: Callable[[], str]


def opened(artifact: str, verify: bool) -> Inspected:
    """What an artifact says of itself."""
    from tilewright.artifact.stages import notes_of
    from tilewright.cli.compile import pick, stages_of

    found = (verify_artifact if verify else open_artifact)(artifact)
    return Inspected(found.manifest, notes_of(found), lambda: pick(stages_of(found), None, None, "graph"))


def work_of(text: str, n: int, context: int) -> dict[str, tuple[Cost, ...]]:
    """What each graph of a stage computes and reads when its symbols take `n`, as far as their ranges go, and
    each token attends to `context` positions of a cache."""
    from tilewright.ir.ops.base import CONTEXT
    from tilewright.ir.text.graph_parser import parse_module
    from tilewright.passes.costs import costs_of

    module = parse_module(text)
    sizes = {s: max(r.lo, n if r.hi is None else min(n, r.hi)) for s, r in module.symbols}
    sizes[CONTEXT] = context
    return {g.name: costs_of(module, g, sizes) for g in module.graphs}


def work_rows(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
    """A table: op, how many, operations, bytes of weights."""
    rows: list[tuple[str, ...]] = [("op", "count", "operations", "weights read")]
    for c in costs:
        done = "not stated" if c.operations is None else f"{c.operations:,}"
        rows.append((c.op, str(c.count), done, human_bytes(c.weight_bytes)))
    total = sum(c.operations or 0 for c in costs)
    return [*rows, ("total", "", f"{total:,}", human_bytes(sum(c.weight_bytes for c in costs)))]


def outlined(folder: str, recipe: str | None) -> Inspected:
    """What an artifact of a checkpoint directory would say, as far as nothing must be built for it."""
    from tilewright.api import outline
    from tilewright.artifact.contents import Contents, make_manifest
    from tilewright.artifact.stages import notes_by_stage
    from tilewright.backends.storage import place_weights

    compiled = outline(folder, recipe=recipe)
    contents = Contents(compiled.record, (), compiled.recipe.stated(), compiled.model_dir, compiled.task)
    m = make_manifest(contents, {WEIGHTS: FileEntry(place_weights(compiled.program.weights)[1], "")})
    graphs = [s for s in compiled.stages if s.form == "graph"]
    return Inspected(m, notes_by_stage(compiled.record), lambda: graphs[-1].text)


def report(found: Inspected, show_weights: bool) -> str:
    """The manifest as a page of text."""
    m = found.manifest
    head = [
        ("made by", f"{m.made_by}, format {m.format}, id {m.id}"),
        ("parameters", f"{m.parameters:,} at {m.bits_per_weight:.2f} bits per weight"),
        *((k, str(m.limits[k])) for k in ("context", "vocab", "max_tokens") if m.limits[k]),
        *_about_model(m.meta, m.limits),
    ]
    task = [] if m.task is None else about_task(m.task)
    sections = [
        ("", [(k, v) for k, v in head]),
        ("task", task),
        ("graphs", [(g.name, f"({_tensors(g.inputs)}) -> {_tensors(g.outputs)}") for g in m.graphs]),
        ("symbols", [(n, f"{lo} to {hi}") for n, (lo, hi) in m.symbols.items()]),
        ("recipe", [(k, str(v)) for k, v in m.recipe.items()]),
        ("targets", [(v.name, ", ".join(v.features) or "any CPU") for v in m.levels]),
        ("stages", [(s.name, s.made_by + counted(found.notes.get(s.name, ()))) for s in m.stages]),
        ("kernels", [(k, "") for k in m.kernels]),
        (
            "encodings",
            [(e, f"{count} weights, {human_bytes(size)}") for e, (count, size) in encodings(m).items()],
        ),
        ("KV cache", _states(m)),
        ("tokens", _cuts(found.notes)),
        ("bytes", [(k, human_bytes(v)) for k, v in parts(m).items()]),
    ]
    if show_weights:
        sections.append(
            ("weights", [(w.name, f"{w.type} as {stored(w)}, {human_bytes(w.bytes)}") for w in m.weights])
        )
    return "\n".join(
        f"{title}\n{table(list(rows))}" if title else table(list(rows), "")
        for title, rows in sections
        if rows
    )


def _cuts(notes: Notes) -> list[tuple[str, str]]:
    """Where tokens of an encoder are cut, and to how many."""
    found = [n for stage, some in notes.items() if stage.endswith("_reduce-tokens") for n in some]
    return [(n.rewrite, n.reason) for n in found if n.applied]


def _tensors(entries: Sequence[TensorEntry]) -> str:
    return ", ".join(f"{t.name}: {t.dtype}[{', '.join(t.shape)}]" for t in entries)


def _about_model(meta: Mapping[str, object], limits: Mapping[str, int]) -> list[tuple[str, str]]:
    """The model's metadata; structures as Python writes them, and how many indices are checked as a plain
    module runs."""
    shown = {k: str(v) for k, v in meta.items() if k not in limits}
    if "outputs" in meta:
        shown |= described(meta)
    checks = meta.get("checks")
    return [
        *(
            {**shown, "checks": f"{len(checks)} of indices"} if isinstance(checks, list | tuple) else shown
        ).items()
    ]


def stored(w: WeightEntry) -> str:
    """Encoding and solver as recipes write them, `gptq(int4(group=32))`; `rtn` is rounding to nearest. Dense
    weights have no solver."""
    solver = w.solver or (w.encoding if w.encoding in BITS else f"rtn({w.encoding})")
    return f"{solver}, channels rescaled" if w.values == "rescaled" else solver


def encodings(m: Manifest) -> dict[str, tuple[int, int]]:
    """(number of weights, bytes) for each encoding and solver."""
    found: dict[str, tuple[int, int]] = {}
    for w in m.weights:
        count, size = found.get(stored(w), (0, 0))
        found[stored(w)] = (count + 1, size + w.bytes)
    return found


def counted(notes: Sequence[Note]) -> str:
    """How many rewrites a pass made and declined, to stand behind its name."""
    made = sum(n.applied for n in notes)
    return f"  [{made} applied, {len(notes) - made} declined]" if notes else ""


def _states(m: Manifest) -> list[tuple[str, str]]:
    """Layers with equal caches together, what each holds, and what all of them take."""
    layers: dict[StateEntry, list[int]] = defaultdict(list)
    for n, s in enumerate(m.states):
        layers[replace(s, name="")].append(n)
    rows = [
        (
            f"layers {ranges(where)}",
            f"keys {s.k}, values {s.v}, {s.heads} heads, {s.kind}, {s.token_bytes:,} bytes per token"
            + (f" and up to {s.recent_bytes:,} bytes in bf16 per sequence" if s.recent else ""),
        )
        for s, where in layers.items()
    ]
    each, full = (sum(getattr(s, k) for s in m.states) for k in ("token_bytes", "bytes"))
    rows.append(("all layers", f"{each:,} bytes per token, {human_bytes(full)} per sequence at full context"))
    policy = m.recipe.get("cache")
    return [*rows, ("policy", str(policy))] if policy else rows


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text: `0-2, 5`."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(f"{a}-{b}" if a != b else str(a) for a, b in runs)


def parts(m: Manifest) -> dict[str, int]:
    """Bytes of each top-level part of the folder."""
    found: dict[str, int] = defaultdict(int)
    for name, entry in m.files.items():
        found[name.split("/")[0]] += entry.bytes
    return dict(found)
