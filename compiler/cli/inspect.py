"""`tilewright inspect`: what an artifact holds, read from its manifest. Executes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tilewright.cli.common import human_bytes, json_option, plugin_option, print_json, table
from tilewright.runtime.artifact import open_artifact, verify_artifact
from tilewright.runtime.manifest import MANIFEST, WEIGHTS, FileEntry, Manifest, TensorEntry
from tilewright.runtime.structure import described

if TYPE_CHECKING:
    from tilewright.passes.costs import Cost


@click.command("inspect")
@click.argument("artifact", metavar="MODEL.TW|DIR", type=click.Path())
@click.option("--recipe", help="For a DIR: the recipe to compile it with.")
@click.option("--verify", is_flag=True, help="Check the hash of every file, including the weights.")
@click.option("--weights", "show_weights", is_flag=True, help="List every weight.")
@click.option(
    "--work",
    metavar="N",
    type=click.IntRange(1),
    help="Operations and bytes of weights, by kind of op, when every dynamic size is N (1: a step of one "
    "token).",
)
@json_option
@plugin_option
def inspect_command(
    artifact: str, recipe: str | None, verify: bool, show_weights: bool, work: int | None, as_json: bool
) -> None:
    """Signature, recipe, stages, kernels, bytes per part, bits per weight, targets: of an artifact, or of
    what a checkpoint directory, whose weights need not be there, would become."""
    of_folder = not (Path(artifact) / MANIFEST).exists() and (Path(artifact) / "config.json").exists()
    if of_folder and verify:
        raise click.UsageError(f"--verify is for an artifact; {artifact} is a checkpoint directory")
    if recipe and not of_folder:
        raise click.UsageError(f"--recipe is for a checkpoint directory, which {artifact} is not")
    m, graphs = outlined(artifact, recipe) if of_folder else opened(artifact, verify)
    costs = {} if work is None else work_of(graphs(), work)
    if as_json:
        derived = {
            "bits_per_weight": round(m.bits_per_weight, 4),
            "parameters": m.parameters,
            "parts": parts(m),
        }
        found = {"work": {g: [asdict(c) for c in rows] for g, rows in costs.items()}} if costs else {}
        print_json({**asdict(m), **derived, "verified": verify, **found})
        return
    click.echo(report(m, show_weights))
    for name, rows in costs.items():
        click.echo(f"work of @{name}, every dynamic size {work}\n{table(work_rows(rows))}")
    if verify:
        click.echo("verified: every file, including the weights, has the hash in the manifest")


def opened(artifact: str, verify: bool) -> tuple[Manifest, Callable[[], str]]:
    """The manifest of an artifact, and what reads the text of its fused graphs."""
    from tilewright.cli.compile import pick, stages_of

    found = (verify_artifact if verify else open_artifact)(artifact)
    return found.manifest, lambda: pick(stages_of(found), None, None, "graph")


def work_of(text: str, n: int) -> dict[str, tuple[Cost, ...]]:
    """What each graph of a stage computes and reads when its symbols take `n`, as far as their ranges go."""
    from tilewright.ir.text.graph_parser import parse_module
    from tilewright.passes.costs import costs_of

    module = parse_module(text)
    sizes = {s: max(r.lo, n if r.hi is None else min(n, r.hi)) for s, r in module.symbols}
    return {g.name: costs_of(module, g, sizes) for g in module.graphs}


def work_rows(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
    """A table: op, how many, operations, bytes of weights."""
    rows: list[tuple[str, ...]] = [("op", "count", "operations", "weights read")]
    for c in costs:
        done = "not stated" if c.operations is None else f"{c.operations:,}"
        rows.append((c.op, str(c.count), done, human_bytes(c.weight_bytes)))
    total = sum(c.operations or 0 for c in costs)
    return [*rows, ("total", "", f"{total:,}", human_bytes(sum(c.weight_bytes for c in costs)))]


def outlined(folder: str, recipe: str | None) -> tuple[Manifest, Callable[[], str]]:
    """The manifest that an artifact of a checkpoint directory would have, as far as nothing must be built for
    it, and what gives the text of its fused graphs.
    """
    from tilewright.api import outline
    from tilewright.artifact.writer import Contents, make_manifest
    from tilewright.backends.storage import place_weights

    compiled = outline(folder, recipe=recipe)
    contents = Contents(compiled.record, (), compiled.recipe.facts(), compiled.model_dir)
    m = make_manifest(contents, {WEIGHTS: FileEntry(place_weights(compiled.program.weights)[1], "")})
    return m, lambda: [s for s in compiled.stages if s.level == "graph"][-1].text


def report(m: Manifest, show_weights: bool) -> str:
    """The manifest as a page of text."""
    head = [
        ("made by", f"{m.made_by}, format {m.format}, id {m.id}"),
        ("parameters", f"{m.parameters:,} at {m.bits_per_weight:.2f} bits per weight"),
        *((k, str(m.limits[k])) for k in ("context", "vocab", "max_tokens") if m.limits[k]),
        *_facts(m.meta, m.limits),
    ]
    sections = [
        ("", [(k, v) for k, v in head]),
        ("graphs", [(g.name, f"({_tensors(g.inputs)}) -> {_tensors(g.outputs)}") for g in m.graphs]),
        ("symbols", [(n, f"{lo} to {hi}") for n, (lo, hi) in m.symbols.items()]),
        ("recipe", [(k, str(v)) for k, v in m.recipe.items()]),
        ("targets", [(v.name, ", ".join(v.features) or "any CPU") for v in m.levels]),
        ("stages", [(s.name, s.made_by) for s in m.stages]),
        ("kernels", [(k, "") for k in m.kernels]),
        (
            "encodings",
            [(e, f"{count} weights, {human_bytes(size)}") for e, (count, size) in _encodings(m).items()],
        ),
        ("KV cache", _states(m)),
        ("bytes", [(k, human_bytes(v)) for k, v in parts(m).items()]),
    ]
    if show_weights:
        sections.append(
            ("weights", [(w.name, f"{w.type} as {w.encoding}, {human_bytes(w.bytes)}") for w in m.weights])
        )
    return "\n".join(
        f"{title}\n{table(list(rows))}" if title else table(list(rows), "")
        for title, rows in sections
        if rows
    )


def _tensors(entries: Sequence[TensorEntry]) -> str:
    return ", ".join(f"{t.name}: {t.dtype}[{', '.join(t.shape)}]" for t in entries)


def _facts(meta: Mapping[str, object], limits: Mapping[str, int]) -> list[tuple[str, str]]:
    """Facts about the model; structures as Python writes them, and how many indices are checked as a plain
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


def _encodings(m: Manifest) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for w in m.weights:
        count, size = found.get(w.encoding, (0, 0))
        found[w.encoding] = (count + 1, size + w.bytes)
    return found


def _states(m: Manifest) -> list[tuple[str, str]]:
    kinds: dict[tuple[str, str, int], int] = defaultdict(int)
    for s in m.states:
        kinds[(s.k, s.v, s.bytes)] += 1
    return [
        (f"{n} layers", f"keys {k}, values {v}, {human_bytes(b * n)} a sequence at full context")
        for (k, v, b), n in kinds.items()
    ]


def parts(m: Manifest) -> dict[str, int]:
    """Bytes of each top-level part of the folder."""
    found: dict[str, int] = defaultdict(int)
    for name, entry in m.files.items():
        found[name.split("/")[0]] += entry.bytes
    return dict(found)
