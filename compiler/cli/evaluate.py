"""`tilewright eval` and `tilewright bench`: how good, how fast."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tilewright.cli.common import (
    cache_option,
    json_option,
    plugin_option,
    print_json,
    progress_bar,
    recall_options,
    table,
    threads_option,
)
from tilewright.runtime.errors import SessionError
from tilewright.user_files import read_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tilewright.cli.common import Progress
    from tilewright.runtime.limits import Limits
    from tilewright.runtime.model import Model
    from tilewright.tools.layer_errors import LayerError

#: the limit that prefill is compared with, by the form of its contractions
PEAKS = {"int8": "int8_gop_s", "bf16": "bf16_gflop_s", "f32": "f32_gflop_s"}

#: windows that the errors of layers are measured on
LAYER_WINDOWS = 16


@click.command("eval")
@click.argument("artifact", type=click.Path())
@click.option(
    "--text",
    "text_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Text file to evaluate on; with --recall, the text between the facts.",
)
@click.option(
    "--window",
    default=512,
    show_default=True,
    type=click.IntRange(2),
    help="Tokens per window; windows are evaluated independently.",
)
@click.option("--windows", type=click.IntRange(1), help="Maximum number of windows.")
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Compare with the PyTorch model: KL divergence, and the output error of every weight's encoding; "
    "with --recall, with that model or another artifact on the same questions.",
)
@cache_option
@click.option(
    "--piece",
    default=64,
    show_default=True,
    type=click.IntRange(2),
    help="With a cache policy: the text is read in pieces of so many tokens, after each of which the policy "
    "acts.",
)
@recall_options
@threads_option
@json_option
@plugin_option
def eval_command(
    artifact: str,
    text_file: Path | None,
    window: int,
    windows: int | None,
    against: str | None,
    cache: str | None,
    piece: int,
    threads: int | None,
    as_json: bool,
    recall_only: bool,
    **asked: Any,
) -> None:
    """Perplexity and tokens per second on a text; with --against, the distance to the PyTorch model on the
    same windows, and the relative error of every linear's output that is due to its weight's encoding. With
    --recall: exact recall of facts over a distance."""
    from tilewright.runtime import evaluate as quality
    from tilewright.runtime.model import in_pieces, load

    model = load(artifact, threads=threads)
    check_language_model(model, "eval")
    if recall_only:
        print_recall(model, artifact, text_file, against, as_json, {**asked, "cache": cache})
        return
    if text_file is None:
        raise click.UsageError("Missing option '--text': perplexity needs a text.")
    if window > model.library.context:
        raise SessionError(
            f"a window of {window} tokens, the context holds {model.library.context}",
            "--window",
            "choose a smaller window",
        )
    ids = model.codec.encode(read_text(text_file, "a text"))
    other = None
    if against:
        from tilewright.tools.reference import torch_logits

        other = torch_logits(against)
    total = len(quality.windows_of(ids, window, windows))
    with progress_bar(as_json) as progress:
        done = iter(range(1, total + 1))

        def tick() -> None:
            progress("read the text", next(done), total)

        forward = in_pieces(model, cache, piece) if model.policy(cache) else model
        q = quality.evaluate(forward, ids, window, windows, other, tick)
        layers = (
            layer_table(artifact, against, quality.windows_of(ids, window, windows), progress)
            if against
            else []
        )
    if as_json:
        bits = round(model.manifest.bits_per_weight, 4)
        report = {**asdict(q), "artifact": artifact, "text": str(text_file), "bits_per_weight": bits}
        print_json({**report, "layers": [asdict(r) for r in layers]} if against else report)
        return
    rows = [
        ("perplexity", f"{q.perplexity:.3f}"),
        ("windows", f"{q.windows} of {q.window} tokens"),
        ("speed", f"{q.tok_s:,.0f} tokens/s"),
    ]
    if q.kl is not None and q.same_top is not None:
        rows += [
            ("KL to PyTorch", f"{q.kl:.6f} nats per token"),
            ("same best token", f"{100 * q.same_top:.2f}%"),
        ]
    click.echo(table([*rows], ""))
    if layers:
        click.echo(
            "\n" + table([("weight", "encoding", "bits", "error of its output"), *map(layer_row, layers)], "")
        )


def check_language_model(model: Model, command: str) -> None:
    """SessionError for a model whose graphs are no steps of a language model."""
    if not model.is_language_model:
        what = f"this model does {model.task}" if model.task else "this is a plain module"
        hint = "call it in Python: tilewright.load(path)"
        raise SessionError(f"{command} is for language models; {what}", model.artifact.path.name, hint)


def print_recall(
    model: Model,
    artifact: str,
    text: Path | None,
    against: str | None,
    as_json: bool,
    asked: Mapping[str, Any],
) -> None:
    """Exact answers for each distance."""
    from tilewright.cli.recall import Asked, measure, recall_table, report

    filler = None if text is None else model.codec.encode(read_text(text, "a text"), special=False)
    how = Asked(filler=filler, **asked)
    with progress_bar(as_json) as progress:
        rows = measure(model, how, against, lambda done, of: progress("ask questions", done, of))
    if as_json:
        policy = str(model.policy(how.cache) or "full")
        asked = {"cache": policy, "ask": how.ask, "seed": how.seed}
        print_json({"artifact": artifact, **asked, "distances": report(rows)})
    else:
        click.echo(recall_table(rows))


def layer_table(
    artifact: str, folder: str, windows: Sequence[NDArray[np.int64]], progress: Progress
) -> list[LayerError]:
    """The errors of all linears on at most `LAYER_WINDOWS` of the windows."""
    from tilewright.runtime.artifact import open_artifact
    from tilewright.tools.layer_errors import layer_errors

    def tick(done: int, of: int) -> None:
        progress("compare layers", done, of)

    return layer_errors(open_artifact(artifact), Path(folder), windows[:LAYER_WINDOWS], tick)


def layer_row(r: LayerError) -> tuple[str, ...]:
    error = "rescaled by its solver" if r.error is None else f"{100 * r.error:.3f}%"
    return r.weight, r.encoding, f"{r.bits:.3f}", error


@click.command("bench")
@click.argument("artifact", type=click.Path())
@click.option(
    "--prefill", default=512, show_default=True, type=click.IntRange(1), help="Prompt tokens per prefill."
)
@click.option(
    "--decode", default=64, show_default=True, type=click.IntRange(1), help="Tokens then decoded one by one."
)
@click.option(
    "--context",
    type=click.IntRange(1),
    help="Tokens before the first decoded one; default: those of --prefill.",
)
@click.option(
    "--batch", default=1, show_default=True, type=click.IntRange(1), help="Number of sequences in the batch."
)
@click.option(
    "--repeats",
    default=3,
    show_default=True,
    type=click.IntRange(1),
    help="Number of runs that the medians are taken over.",
)
@threads_option
@json_option
def bench_command(
    artifact: str,
    prefill: int,
    decode: int,
    context: int | None,
    batch: int,
    repeats: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Medians of prefill and decode speed, and their share of the limits of this machine, measured in the
    same run. Of an encoder or vision model: inputs per second, for a --batch of texts of --prefill tokens (or
    as many as it takes), or of images."""
    from tilewright.cli.bench_task import bench_task
    from tilewright.runtime.benchmark import Workload, measure, peak_kind
    from tilewright.runtime.busy import LoadWatch
    from tilewright.runtime.cpu import default_threads
    from tilewright.runtime.limits import ReadProbe, measure_limits
    from tilewright.runtime.model import load

    began = time.perf_counter()
    model = load(artifact, threads=threads)
    if model.manifest.task is not None:
        bench_task(model, batch, prefill, repeats, as_json)
        return
    check_language_model(model, "bench")
    load_s = time.perf_counter() - began
    with progress_bar(as_json) as progress:
        progress("measure prefill and decode", 0, 0)
        watch = LoadWatch()
        probe = ReadProbe(model.library.file, threads or default_threads())
        speed = measure(model, Workload(prefill, decode, context or 0, batch, repeats), probe.gb_s)
        beside = watch.load()
        progress("measure the limits of this machine", 0, 0)
        limits = limit_values(measure_limits(speed.threads, model.library.file))
    limits["dram_gb_s"] = round(speed.dram_gb_s or 0.0, 2) or None
    kind = peak_kind(model.manifest)
    report = {
        "prefill_tok_s": round(speed.prefill_tok_s, 2),
        "decode_tok_s": round(speed.decode_tok_s, 2),
        "prefill_peak_share": share(speed.prefill_gop_s, limits[PEAKS[kind]]),
        "decode_bandwidth_share": share(speed.decode_share or 0.0, 1.0),
        "limits": limits,
        "peak_rss_mb": round(speed.peak_rss_mb, 1),
        "load_s": round(load_s, 4),
        "machine": None if beside is None else beside.as_dict(),
        "decode_gb_s": round(speed.decode_gb_s, 3),
        "prefill_gop_s": round(speed.prefill_gop_s, 2),
        "run": {"level": model.level, "threads": speed.threads, "prefill": prefill, "decode": decode,
                "context": context or prefill, "batch": batch, "repeats": repeats},
    }  # fmt: skip
    if as_json:
        print_json(report)
        return
    peak_part = percent(report["prefill_peak_share"], f"the {kind} peak")
    read_part = percent(report["decode_bandwidth_share"], "the bandwidth")
    rows = [
        ("prefill", f"{speed.prefill_tok_s:,.1f} tokens/s, {speed.prefill_gop_s:,.1f} Gop/s, {peak_part}"),
        ("decode", f"{speed.decode_tok_s:,.1f} tokens/s, {speed.decode_gb_s:.2f} GB/s, {read_part}"),
        ("limits", ", ".join(f"{k} {v:,.1f}" for k, v in limits.items() if v)),
        ("memory", f"{speed.peak_rss_mb:,.0f} MB at most"),
        ("load", f"{load_s:.3f} s"),
        ("run", f"{model.level}, {speed.threads} threads, batch {batch}, context {context or prefill}"),
    ]
    if beside is not None and beside.busy:
        rows.append(("machine", f"{beside.sentence()}: the figures are lower than on an idle machine"))
    click.echo(table([*rows], ""))


def limit_values(limits: Limits) -> dict[str, float | None]:
    """The four limits by their names; None where the level has no such instructions."""
    return {k: v for k, v in limits.as_dict().items() if k != "threads"}


def share(value: float, limit: float | None) -> float | None:
    return round(value / limit, 4) if limit else None


def percent(value: object, of: str) -> str:
    return f"{100 * value:.1f}% of {of}" if isinstance(value, float) else f"an unknown share of {of}"
