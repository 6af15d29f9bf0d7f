"""`tilewright compile` and `tilewright dump`: the compiler from the command line.

In: a checkpoint directory or an artifact. Out: an artifact, or the text of a stage. Independent of how
stages are made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tilewright.cli.common import (
    calibration_options,
    human_bytes,
    json_option,
    plugin_option,
    print_json,
    progress_bar,
)
from tilewright.collector import collector_paused
from tilewright.ir.errors import RefusedError
from tilewright.ir.text.plan_parser import parse_program
from tilewright.ir.text.tile_printer import print_kernels
from tilewright.runtime.artifact import Artifact, open_artifact
from tilewright.runtime.manifest import MANIFEST

if TYPE_CHECKING:
    from tilewright.api import Compiled
    from tilewright.passes.record import Stage

FORMS = ("graph", "tile", "plan", "source")


@click.command("compile")
@click.argument("model", metavar="DIR")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The artifact folder to write, such as model.tw.",
)
@click.option("--recipe", help="A recipe by name, or a TOML file.")
@click.option(
    "--weights",
    metavar="ENC",
    help="Encoding of the weights, optionally with a solver: int4(group=32), gptq(int4(group=128)) …",
)
@click.option(
    "--activations",
    metavar="ENC",
    help="Encoding of the inputs of contractions: f32, bf16, int8(token), int8(token, group=64) …",
)
@click.option(
    "--cache",
    metavar="POLICY",
    help="Which tokens the KV cache keeps: h2o(budget=0.2), window(recent=512) … Default: all. With full, "
    "all are kept unless `run --cache` chooses another policy.",
)
@click.option(
    "--kv",
    metavar="ENC",
    help="Encoding of the KV cache, or KEYS / VALUES: bf16, int8(token), int8(token) / int4(group=32), "
    "int4(token) + recent(64) …",
)
@click.option(
    "--target",
    default="native",
    show_default=True,
    help="native, a level (baseline, avx2, avx512, …), or a comma-separated list of levels.",
)
@click.option("--passes", metavar="TEXT", help="Pass pipeline to run instead of the recipe's.")
@click.option(
    "--context",
    type=click.IntRange(1),
    metavar="N",
    help="Maximum tokens of a sequence; default: the model's own.",
)
@click.option("--tuning", type=click.Path(path_type=Path), help="Schedules measured by `tilewright tune`.")
@click.option(
    "--adapter",
    type=click.Path(exists=True, file_okay=False),
    help="LoRA adapter folder to merge into the weights.",
)
@click.option(
    "--rotate",
    type=click.Choice(["offline", "online"]),
    help="Rotate the residual stream to spread outliers over all channels.",
)
@click.option(
    "--share-prefixes",
    is_flag=True,
    default=None,
    help="A step reads the beginning that its sequences have in common once for all of them.",
)
@click.option(
    "--tokens",
    metavar="TEXT",
    help="Compute fewer tokens in the later layers of an encoder: evit(keep=0.7), tome(r=8) …",
)
@click.option(
    "--pack",
    is_flag=True,
    default=None,
    help="Compute only the tokens of an encoder that its attention mask keeps; padding is zero in results.",
)
@calibration_options
@plugin_option
@json_option
def compile_command(
    model: str,
    output: Path,
    recipe: str | None,
    weights: str | None,
    activations: str | None,
    cache: str | None,
    kv: str | None,
    target: str,
    passes: str | None,
    context: int | None,
    tuning: Path | None,
    adapter: str | None,
    rotate: str | None,
    share_prefixes: bool | None,
    tokens: str | None,
    pack: bool | None,
    calibrate: Path | None,
    samples: int,
    sample_tokens: int,
    max_ram: int,
    work: Path | None,
    as_json: bool,
) -> None:
    """Compile the Hugging Face model in DIR (a folder, or a hub id) into one artifact."""
    from tilewright import api
    from tilewright.artifact.writer import check_target
    from tilewright.backends.registry import chosen

    backend, targets = chosen(target)  # a wrong name or place shows before the work, not after it
    check_target(output)
    began = time.perf_counter()
    with progress_bar() as progress, collector_paused():
        backend.prepare(targets)
        compiled = api.compile(
            model, recipe=recipe, weights=weights, activations=activations, kv=kv, target=target,
            passes=passes, adapter=adapter,
            progress=progress, calibrate=calibrate, samples=samples, sample_tokens=sample_tokens,
            max_ram=max_ram, work=work,
            rotate=rotate, tokens=tokens, tuning=tuning, context=context, cache=cache,
            share_prefixes=share_prefixes, pack=pack,
        )  # fmt: skip
        manifest = compiled.save(output, progress=progress)
    spent = time.perf_counter() - began
    size = sum(f.bytes for f in manifest.files.values())
    if as_json:
        print_json({
            "artifact": str(output), "seconds": round(spent, 2), "bytes": size,
            "parameters": manifest.parameters,
            "bits_per_weight": round(manifest.bits_per_weight, 4),
            "levels": [v.name for v in manifest.levels],
            "kernels": len(manifest.kernels), "summary": summary(compiled), "passes": passes_of(compiled),
        })  # fmt: skip
        return
    click.echo(summary(compiled))
    click.echo(
        f"{output}: {human_bytes(size)}, {manifest.parameters:,} parameters at "
        f"{manifest.bits_per_weight:.2f} bits, "
        f"{len(manifest.kernels)} kernels for {', '.join(v.name for v in manifest.levels)}, in {spent:.1f} s"
    )


@click.command("dump")
@click.argument("source", metavar="MODEL.TW|DIR")
@click.option("--stage", metavar="NAME", help="Stage to print; default: the last stage in --form.")
@click.option("--after", metavar="PASS", help="Print the text after this pass.")
@click.option(
    "--form",
    type=click.Choice(FORMS),
    help="Print the last stage in this form; source: the generated code.",
)
@click.option("--list", "only_names", is_flag=True, help="Print the names of the stages.")
@click.option("--recipe", help="For a DIR: the recipe to compile it with.")
@click.option("--passes", metavar="TEXT", help="For a DIR: the passes to compile it with.")
@click.option("--target", help="For a DIR: the target whose schedules and source are shown; default: native.")
@plugin_option
def dump_command(
    source: str,
    stage: str | None,
    after: str | None,
    form: str | None,
    only_names: bool,
    recipe: str | None,
    passes: str | None,
    target: str | None,
) -> None:
    """Print the IR of a stage. Executes nothing of an artifact; a checkpoint directory, whose weights need
    not be there, is compiled up to its plan.
    """
    if (Path(source) / MANIFEST).exists():
        if recipe or passes or target:
            raise click.UsageError(
                f"--recipe, --passes and --target are for a checkpoint directory; {source} is compiled "
                "already"
            )
        artifact = open_artifact(source)
        if form == "source":
            click.echo(_source(artifact), nl=False)
            return
        stages = stages_of(artifact)
    else:
        from tilewright import api

        with progress_bar() as progress:
            compiled = api.outline(
                source, recipe=recipe, passes=passes, target=target or "native", progress=progress
            )
        if form == "source":
            click.echo(generated(compiled), nl=False)
            return
        stages = [Shown.of(n, s) for n, s in enumerate(compiled.stages)]
    if only_names:
        click.echo("\n".join(f"{s.name}  ({s.form})" for s in stages))
        return
    click.echo(pick(stages, stage, after, form), nl=False)


@dataclass(frozen=True)
class Shown:
    """A stage to print: its numbered name, the form of its IR, and its text when requested."""

    name: str
    form: str
    text: Callable[[], str]

    @staticmethod
    def of(number: int, stage: Stage) -> Shown:
        return Shown(f"{number:03d}_{stage.name}", stage.form, lambda: stage.text)


def stages_of(artifact: Artifact) -> list[Shown]:
    """The stages whose texts an artifact holds."""

    def read(file: str) -> str:
        return artifact.text(file) or ""

    return [Shown(s.name, s.form, partial(read, s.file)) for s in artifact.manifest.stages]


def summary(compiled: Compiled) -> str:
    """One line on how much of the model became what."""
    p = compiled.program
    calls = sum(len(plan.calls) for plan in p.plans)
    states = f", {len(p.states)} caches" if p.states else ""
    code = f"{calls} calls of {len(p.kernels)} kernels"
    task = f"{compiled.task.name}, captured" if compiled.task else "captured"
    return f"{task} completely: {len(p.weights)} weights{states}; {code}; {len(compiled.stages)} stages"


def passes_of(compiled: Compiled) -> list[dict[str, object]]:
    """What each pass was told, took and noted, in order."""
    return [
        {"pass": s.made_by or s.name, "seconds": round(s.seconds, 4), "notes": [str(n) for n in s.notes]}
        for s in compiled.stages[1:]
    ]


def generated(compiled: Compiled) -> str:
    """The source for every target, without building it."""
    from tilewright.backends.registry import chosen

    backend, targets = chosen(compiled.target)
    return "".join(f"// ==== {t}\n{backend.source(compiled.program, t)}" for t in targets)


def _source(a: Artifact) -> str:
    return "".join(f"// ==== {v.source}\n{a.text(v.source)}" for v in a.manifest.levels)


def pick(stages: Sequence[Shown], stage: str | None, after: str | None, form: str | None) -> str:
    """The text requested; RefusedError with the names there are. In form `tile`, only the kernels of a
    stage."""
    wanted, held = stage or after, "plan" if form == "tile" else form
    found = [s for s in stages if (wanted is None or matches(s.name, wanted)) and held in (None, s.form)]
    if not found:
        names = ", ".join(s.name for s in stages) or "none"
        asked = f"no stage {wanted!r}" if wanted else f"no stage in form {form!r}"
        raise RefusedError(
            f"{asked}; the stages are {names}", "dump", "use one of these names, with or without its number"
        )
    text = found[-1].text()
    return kernels_of(text) if form == "tile" else text


def kernels_of(program: str) -> str:
    """The tile programs of a program's text, without metadata, weights and plans."""
    return print_kernels(parse_program(program).kernels)


def matches(name: str, wanted: str) -> bool:
    """`003_fuse` is meant by `003_fuse`, `fuse`, `003` and `3`."""
    number, _, rest = name.partition("_")
    return wanted in (name, rest) or (wanted.isascii() and wanted.isdigit() and int(wanted) == int(number))
