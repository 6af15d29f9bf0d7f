"""`tilewright run`: text from a compiled model, streamed as it comes, or answers to texts and images.

Loads only the runtime.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tilewright.cli.common import (
    argument,
    cache_option,
    json_option,
    plugin_option,
    print_json,
    threads_option,
)
from tilewright.user_files import read_stdin

if TYPE_CHECKING:
    from tilewright.runtime.model import Model


def _variables(ctx: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, object]:
    """What --set says, `name=value` each."""
    return dict(map(_variable, texts))


def _variable(text: str) -> tuple[str, object]:
    """`name=value` of --set."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise click.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--set")
    try:
        value = Path(value[1:]).read_text("utf-8") if value.startswith("@") else value
    except (OSError, UnicodeDecodeError) as e:
        raise click.BadParameter(f"{name}: cannot read {value[1:]!r} ({e})", param_hint="--set") from None
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


@click.command("run")
@click.argument("artifact", type=click.Path())
@click.option("--prompt", "-p", help="Text to continue; - or no option: read it from standard input.")
@click.option("--text", multiple=True, help="Text for an encoder to answer. Repeatable.")
@click.option(
    "--text-pair", multiple=True, help="Second text of a pair, or the passage of a question. One per --text."
)
@click.option(
    "--image", multiple=True, metavar="FILE", help="Image for a vision model to answer. Repeatable."
)
@click.option(
    "--top", type=click.IntRange(1), help="Number of labels or fillings in an answer.  [default: 5]"
)
@click.option("--truncate", is_flag=True, help="Cut off the end of a --text that is too long.")
@click.option(
    "-n",
    "--max-new-tokens",
    "n",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of new tokens.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    help="0: always the most likely token. Default: 1 if a sampling option below is given, else 0.",
)
@click.option("--top-k", type=click.IntRange(0), help="Sample from the k most likely tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1),
    help="Sample from the most likely tokens with this total probability.",
)
@click.option(
    "--min-p", type=click.FloatRange(0, 1), help="Drop tokens below this fraction of the highest probability."
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(0.001, 1000),
    help="Above 1: tokens that occurred before become less likely.",
)
@click.option("--seed", type=click.IntRange(0), help="The same seed gives the same text.")
@click.option("--stop", multiple=True, help="Stop before this string. Repeatable.")
@click.option("--raw", is_flag=True, help="Do not apply the chat template to the prompt.")
@click.option(
    "--set",
    "variables",
    multiple=True,
    callback=_variables,
    metavar="NAME=VALUE",
    help="A variable of the chat template: JSON, or otherwise text; @FILE reads it from a file. Repeatable.",
)
@click.option("--level", help="Use this instruction set of the artifact instead of the best one.")
@click.option(
    "--rebuild",
    is_flag=True,
    help="Build the libraries here from the artifact's IR instead of running those in the artifact.",
)
@cache_option
@click.option(
    "--prompt-cache",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="What FILE holds of the prompt is not read again; afterwards it holds this prompt and its text.",
)
@threads_option
@json_option
@plugin_option
def run_command(
    artifact: str,
    prompt: str | None,
    text: tuple[str, ...],
    text_pair: tuple[str, ...],
    image: tuple[str, ...],
    top: int | None,
    truncate: bool,
    n: int,
    stop: tuple[str, ...],
    seed: int | None,
    raw: bool,
    variables: dict[str, object],
    level: str | None,
    rebuild: bool,
    cache: str | None,
    prompt_cache: Path | None,
    threads: int | None,
    as_json: bool,
    **sampling: float | None,
) -> None:
    """Continue a prompt, or answer texts and images. Language models with a chat template get the prompt as a
    user's message (--raw: as it is), with the variables of --set, such as tools=@tools.json. Ctrl-C ends the
    text cleanly.

    Encoders and vision models take --text and --image, and print labels with their probabilities, entities,
    fillings of a mask, answers or vectors; models that compare both take both, and print the texts that
    describe each image best."""
    from tilewright.cli.answer import Asked, answer
    from tilewright.runtime.model import Prompt, load

    model = load(artifact, threads=threads, level=level, rebuild=rebuild)
    asked = Asked(text, text_pair, image, top, truncate)
    check_inputs(model, asked.given, prompt)
    if model.manifest.task is not None:
        answer(model, asked, as_json)
        return
    said = read_stdin("a prompt as text") if prompt in (None, "-") else argument(str(prompt), "--prompt")
    stop = tuple(argument(s, "--stop") for s in stop)
    chat = not raw and model.codec.has_template
    wanted: Prompt = [{"role": "user", "content": said}] if chat else said
    pieces = model.stream(model.request(wanted, n, stop, seed, variables, **sampling), cache, prompt_cache)
    shown = 0
    try:
        for piece in pieces:
            if not as_json:
                click.echo(piece, nl=False)
                sys.stdout.flush()
            shown += len(piece)
    except KeyboardInterrupt:
        pieces.close()
    result = pieces.result
    if as_json:
        print_json({**asdict(result), "decode_tok_s": round(result.decode_tok_s, 2), "level": model.level})
    else:
        click.echo(result.text[shown:])


def check_inputs(model: Model, asked: bool, prompt: str | None) -> None:
    """UsageError for --prompt with a model that answers, or --text and the like with one that does not."""
    if model.manifest.task is not None and prompt is not None:
        raise click.UsageError(f"this model does {model.task}: pass --text or --image instead of --prompt")
    if model.manifest.task is None and asked:
        what = (
            "this is a language model: pass --prompt" if model.is_language_model else "this is a plain module"
        )
        raise click.UsageError(
            f"--text, --image and their options are for encoders and vision models; {what}"
        )
