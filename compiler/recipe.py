"""Recipes: what a user writes to say how a model should be compiled.

In: a preset's name, a TOML file, a mapping, and overrides from the command line. Out: a frozen `Recipe`,
which becomes options of passes. Knows the names of passes' options and nothing of what the passes do.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tilewright.arguments import is_path, said
from tilewright.ir.errors import RefusedError
from tilewright.passes.pipelines import (
    LOWERING,
    PIPELINES,
    calibrating,
    packing,
    pipeline_text,
    reducing,
    rotating,
)
from tilewright.runtime.cache.registry import parse_policy
from tilewright.user_files import read_text

if TYPE_CHECKING:
    from tilewright.ir.solver import Solver

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Recipe:
    """Encodings of weights, embeddings, head (empty: a default that fits `weights`), activations and KV
    cache; `rules` and `activation_rules`: (pattern on weight names, encoding), first match wins; `context`:
    maximum positions of a sequence (0: the model's own); `cache`: the policy that decides which tokens stay
    in the caches, `h2o(budget=0.2)` (empty: all; `full`: all, unless a session chooses another policy);
    `share_prefixes`: what sequences of a step have in common is read once for all of them; `rotate`:
    `offline` turns a decoder's residual stream by its weights alone, `online` also what they cannot turn;
    `tokens`: how the later layers of an encoder compute fewer tokens (`evit(keep=0.7)`); `pack`: an encoder
    computes only the tokens that its attention mask keeps, and padding is zero in its results; `passes`:
    pipeline text that replaces the standard one; `wide`: names of weights whose scales need a wider range
    than their encoding's, found while they are stored."""

    name: str = "bf16"
    weights: str = "bf16"
    embeddings: str = ""
    head: str = ""
    activations: str = "bf16"
    kv: str = "bf16"
    context: int = 0
    share_prefixes: bool = False
    cache: str = ""
    rules: Rules = ()
    activation_rules: Rules = ()
    rotate: str = ""
    tokens: str = ""
    pack: bool = False
    passes: str = ""
    wide: tuple[str, ...] = ()

    def stated(self) -> dict[str, object]:
        """The fields that say something, as plain data for the manifest."""
        plain = dataclasses.asdict(self)
        lists = {
            k: [list(p) if isinstance(p, tuple) else p for p in v]
            for k, v in plain.items()
            if isinstance(v, tuple)
        }
        return {k: lists.get(k, v) for k, v in plain.items() if v not in ("", 0, ())}

    def pass_options(self) -> dict[str, dict[str, object]]:
        """Options by pass name; defaults are left to the passes."""
        weights: dict[str, object] = {
            "weights": self.weights,
            "embeddings": self.embeddings,
            "head": self.head,
            "rules": self.rules,
            "wide": self.wide,
        }
        options: dict[str, dict[str, object]] = {
            "encode-weights": weights,
            "quantize-activations": {"activations": self.activations, "rules": self.activation_rules},
            "incrementalize": {
                "kv": self.kv,
                "context": self.context,
                "shares": self.share_prefixes,
                **cache_options(self.cache),
            },
            "reduce-tokens": {"tokens": self.tokens},
        }
        if self.rotate == "offline":
            options["rotate"] = {"online": False}
        return {
            p: {k: v for k, v in given.items() if v is False and k == "online" or v not in ("", 0, ())}
            for p, given in options.items()
        }

    def pipeline(self, kind: str, lowering: bool = False) -> str:
        """Pipeline text for a `decoder` or a `plain` module; with the passes down to a placed program if
        asked."""
        if self.passes:
            return self.passes
        order = calibrating(PIPELINES[kind]) if self.needs_samples() else PIPELINES[kind]
        order = rotating(order) if self.rotate and kind == "decoder" else order
        order = reducing(order) if self.tokens and kind == "plain" else order
        order = packing(order) if self.pack and kind == "plain" else order
        return pipeline_text(order + (LOWERING if lowering else ()), self.pass_options())

    def solvers(self) -> tuple[Solver, ...]:
        """Every solver that its weights name."""
        import tilewright.passes.solvers  # noqa: F401  registers them
        from tilewright.ir.solver import parse_stored

        found = [
            parse_stored(t)[0]
            for t in (self.weights, self.embeddings, self.head, *(e for _, e in self.rules))
            if t
        ]
        return tuple(part for s in found if s for part in s.chain())

    def needs_samples(self) -> bool:
        return any(s.calibrated for s in self.solvers())


def cache_options(cache: str) -> dict[str, object]:
    """What caches must do for a policy: the options of `incrementalize`."""
    if not cache:
        return {}
    policy = parse_policy(cache)
    return {
        "evicts": policy.evicts or policy.defers,
        "observes": policy.observe != "none" or policy.defers,
        "select": policy.selects,
    }


PRESETS: Mapping[str, Recipe] = {
    r.name: r
    for r in (
        Recipe("f32", weights="f32", activations="f32", kv="f32"),
        Recipe("bf16"),
        Recipe("int8", weights="int8(channel)", activations="bf16"),
        Recipe("int4", weights="int4(group=32)", activations="bf16"),
        Recipe("w8a8", weights="int8(channel)", activations="int8(token)"),
        Recipe("w4a8", weights="int4(group=32)", activations="int8(token)"),
    )
}


def resolve_recipe(
    recipe: str | Path | Recipe | Mapping[str, object] | None = None, *, weights: str | None = None,
    activations: str | None = None, kv: str | None = None, rotate: str | None = None,
    cache: str | None = None, tokens: str | None = None, share_prefixes: bool | None = None,
    pack: bool | None = None,
) -> Recipe:  # fmt: skip
    """The recipe a user means, with overrides applied. RefusedError names unknown presets, fields and bad
    values."""
    chosen = _chosen(recipe)
    asked = {
        "weights": weights, "activations": activations, "kv": kv, "rotate": rotate, "cache": cache,
        "tokens": tokens, "share_prefixes": share_prefixes, "pack": pack,
    }  # fmt: skip
    given = {k: v for k, v in asked.items() if v is not None}
    checked = replace(chosen, **given)  # type: ignore[arg-type]
    _check_encodings(checked)
    _check_tokens(checked)
    return checked


def _chosen(recipe: str | Path | Recipe | Mapping[str, object] | None) -> Recipe:
    if recipe is None:
        return PRESETS["bf16"]
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return from_mapping(recipe, "recipe")
    if str(recipe) in PRESETS:
        return PRESETS[str(recipe)]
    if not is_path(recipe):
        raise RefusedError(
            f"expected the name of a preset, a TOML file or a mapping, got {said(recipe)}", "recipe"
        )
    path = Path(recipe)
    if path.suffix == ".toml" or path.exists():
        return load_recipe(path)
    near = difflib.get_close_matches(str(recipe), PRESETS, 3)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"presets: {', '.join(PRESETS)}; or the path of a TOML file"
    )
    raise RefusedError(f"unknown recipe {str(recipe)!r}", "recipe", hint)


def load_recipe(path: Path) -> Recipe:
    """A recipe from a TOML file. RefusedError names the file and the field."""
    text = read_text(path, f"a TOML file, or a preset: {', '.join(PRESETS)}")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as why:
        raise RefusedError(
            f"is not TOML: {why}", str(path), 'write lines like weights = "int4(group=32)"'
        ) from why
    return from_mapping({"name": path.stem, **data}, str(path))


def from_mapping(data: Mapping[str, object], where: str) -> Recipe:
    """Fields by name; `base` names a preset to start from; `[rules]` and `[activation_rules]` map patterns to
    encodings."""
    left = dict(data)
    base = left.pop("base", "bf16")
    if base not in PRESETS:
        raise RefusedError(f"base {base!r} is not a preset", where, f"presets: {', '.join(PRESETS)}")
    fields = {f.name: f for f in dataclasses.fields(Recipe)}
    values: dict[str, object] = {}
    for key, value in left.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            raise RefusedError(
                f"unknown field {key!r}",
                where,
                f"did you mean {near[0]}?" if near else f"fields: {', '.join(fields)}",
            )
        values[key] = _value(key, value, where)
    return replace(PRESETS[str(base)], **values)  # type: ignore[arg-type]


def _value(key: str, value: object, where: str) -> object:
    if key.endswith("rules"):
        return _rules(key, value, where)
    if key != "wide":
        return _plain(key, value, where)
    if not isinstance(value, list | tuple) or not all(isinstance(x, str) for x in value):
        raise RefusedError(
            f"field wide must be a list of weight names, got {value!r}",
            where,
            'write wide = ["lm_head.weight"]',
        )
    return tuple(value)


#: a value of each type, for messages
EXAMPLES = {int: "2048", str: '"bf16"', bool: "true"}


def _plain(key: str, value: object, where: str) -> object:
    want = {"context": int, "share_prefixes": bool, "pack": bool}.get(key, str)
    if type(value) is not want:
        raise RefusedError(
            f"field {key} must be {want.__name__}, got {value!r}",
            where,
            f"write {key} = {EXAMPLES[want]}",
        )
    if want is int and int(str(value)) < 0:
        raise RefusedError(
            f"field {key} must be at least 1 (0: the model's own), got {value}", where, f"write {key} = 2048"
        )
    return value


def _rules(key: str, value: object, where: str) -> Rules:
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    out: list[tuple[str, str]] = []
    for pair in pairs if isinstance(pairs, list | tuple) else [None]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(x, str) for x in pair):
            hint = f'write [{key}] and lines like "*.down_proj.weight" = "int8(channel)"'
            raise RefusedError(f"{key} must map patterns to encodings, got {value!r}", where, hint)
        out.append((pair[0], pair[1]))
    return tuple(out)


def _check_tokens(r: Recipe) -> None:
    from tilewright.passes.reducers import parse_reducer

    if r.tokens:
        parse_reducer(r.tokens)
    if r.tokens and r.pack:
        hint = "reducing counts tokens when it compiles, packing when it runs: leave one of them out"
        raise RefusedError(f"tokens={r.tokens} together with pack", f"recipe {r.name}", hint)


def _check_encodings(r: Recipe) -> None:
    if r.rotate not in ("", "offline", "online"):
        raise RefusedError(f"field rotate must be offline or online, got {r.rotate!r}", f"recipe {r.name}")
    if r.cache:
        parse_policy(r.cache)
    import tilewright.ir.encodings
    import tilewright.passes.solvers  # noqa: F401  both register what they hold
    from tilewright.ir.encoding import EncodingError
    from tilewright.ir.encoding_registry import parse_cache_encodings, parse_encoding
    from tilewright.ir.solver import check_stored

    weights = [("weights", r.weights), ("embeddings", r.embeddings), ("head", r.head)]
    weights += [(f"rules[{p!r}]", e) for p, e in r.rules]
    others = [
        ("activations", r.activations),
        *((f"activation_rules[{p!r}]", e) for p, e in r.activation_rules),
    ]
    caches = [("kv", r.kv)]
    checks: list[tuple[Callable[[str], object], list[tuple[str, str]]]] = [
        (check_stored, weights), (parse_encoding, others), (parse_cache_encodings, caches),
    ]  # fmt: skip
    for check, texts in checks:
        for key, text in texts:
            try:
                if text:
                    check(text)
            except EncodingError as why:
                raise RefusedError(f"{key}: {why}", f"recipe {r.name}") from why
