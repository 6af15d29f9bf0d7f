"""Chat templates: messages and variables to a prompt's text, as transformers' `apply_chat_template` makes it.

In: a template, messages, variables. Out: text. The template runs in a bounded sandbox and sees plain data
alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from tilewright.runtime.errors import SessionError

#: names that a message's reasoning goes by; templates read the first, those of gpt-oss the second
REASONING = ("reasoning_content", "thinking", "reasoning")
#: what the caller of `apply_chat_template` may ask for and a template cannot do by itself
NOT_VARIABLES = ("continue_final_message", "messages", "tokenize")
AS_TEXT = "pass the prompt as plain text"


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, object]],
    tokens: Mapping[str, object],
    variables: Mapping[str, object] | None = None,
) -> str:
    """`tokens`: the tokenizer's special tokens by name; `variables`: `tools`, `documents`,
    `add_generation_prompt` (True if left out), and whatever else the template knows. SessionError if the
    template refuses or asks for too much."""
    from tilewright.runtime.sandbox import BoundedEnvironment, LimitError

    given = {"tools": None, "documents": None, "add_generation_prompt": True, **(variables or {})}
    check_variables(given)
    env = BoundedEnvironment()
    env.filters["tojson"] = _tojson
    env.globals |= {
        "raise_exception": _refuse,
        "strftime_now": _now,
        "dict": _Dict(),
        "namespace": _namespace(),
    }
    spoken = [_message(m) for m in messages]
    try:
        return env.render(
            template, {**tokens, **{k: json_value(v) for k, v in given.items()}, "messages": spoken}
        )
    except LimitError as e:
        raise SessionError(f"the chat template was stopped: {e}", "messages", AS_TEXT) from None
    except Exception as e:
        said = str(e)[:300] or type(e).__name__
        raise SessionError(f"the chat template refuses these messages: {said}", "messages", AS_TEXT) from None


def check_variables(given: Mapping[str, object]) -> None:
    """SessionError for a variable of the wrong form, or one that is none."""
    for name in NOT_VARIABLES:
        if name in given:
            raise SessionError(f"{name} is not a variable of the chat template", "template", "leave it out")
    for name in ("tools", "documents"):
        value = given.get(name)
        if value is not None and not (
            isinstance(value, list | tuple) and all(isinstance(x, Mapping) for x in value)
        ):
            what = "JSON schemas" if name == "tools" else "objects with title and text"
            raise SessionError(f"{name}: expected a list of {what}, got {str(value)[:60]!r}", "template")


def special_tokens(*configs: Mapping[str, object]) -> dict[str, str]:
    """`bos_token` and its like, by name, from the tokenizer's configurations; the first that has one
    counts."""
    out: dict[str, str] = {}
    for config in configs:
        named = config.get("extra_special_tokens")
        for name, value in {**config, **(named if isinstance(named, Mapping) else {})}.items():
            text = value.get("content") if isinstance(value, Mapping) else value
            if (name.endswith("_token") or isinstance(named, Mapping) and name in named) and isinstance(
                text, str
            ):
                out.setdefault(name, text)
    return out


def json_value(value: Any) -> Any:
    """The value as plain JSON types, so that a template meets no method that the sandbox does not know."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # an enumeration's value, not its name
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {json_value(k): json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return (
            type(value)(json_value(v) for v in value)
            if type(value) in (list, tuple)
            else [json_value(v) for v in value]
        )
    return (
        json_value(value.item())
        if hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0
        else f"<{type(value).__name__}>"
    )


def _message(message: Mapping[str, object]) -> dict[str, object]:
    """Without entries that are None, and with the reasoning under the names that templates read."""
    out = {str(k): json_value(v) for k, v in message.items() if v is not None}
    reasoning = next((out[k] for k in REASONING if out.get(k) is not None), None)
    return out if reasoning is None else {"thinking": reasoning, **out, "reasoning_content": reasoning}


# ------------------------------------------------------------------ what templates may call
def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Dict:
    """`dict` without the attributes of a type."""

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        return dict(*args, **named)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _namespace() -> type:
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    class Plain(Namespace):
        """jinja2's, without private names, and printed without what it holds, which may hold itself."""

        def __init__(*args: Any, **named: Any) -> None:  # a variable may be called self
            self, rest = args[0], args[1:]
            values = dict(*rest, **named)
            for name in values:
                _check_name(name)
            Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

        def __repr__(self) -> str:
            return "<Namespace>"

    def _check_name(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(
                f"a namespace cannot have the attribute {name!r}: names that begin with an underscore are "
                "private"
            )

    return Plain
