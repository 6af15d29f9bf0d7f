"""Chat templates: the text as transformers makes it, variables from callers, end tokens, limits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from jinja2 import TemplateError

from tests.runtime import stub
from tests.runtime.chat_templates import STYLES
from tilewright.runtime.chat import render_chat, special_tokens
from tilewright.runtime.errors import SessionError
from tilewright.runtime.sandbox import BoundedEnvironment
from tilewright.runtime.text import TextCodec, tokenizer_of

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
HI = [{"role": "user", "content": "hi"}]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description":
    "The <weather> of a town, 天気", "parameters": {
        "type": "object", "properties": {"town": {"type": "string", "enum": ["Oslo", "Zürich"]}},
        "required": ["town"]}}},
    {"type": "function", "function": {"name": "now", "description": "The time",
    "parameters": {"type": "object"}}},
]  # fmt: skip
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "123456789", "type": "function",
     "function": {"name": "weather", "arguments": {"town": "Zürich", "days": 3}}}]}  # fmt: skip
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "  What is <b>2</b> & 2?\n"}],
    "system": [
        {"role": "system", "content": "Be brief."},
        *HI,
        {"role": "assistant", "content": "Hello."},
        *HI,
    ],
    "tool": [*HI, CALL, {"role": "tool", "content": "21 °C"}, {"role": "assistant", "content": "Warm."}, *HI],
    "thinking": [*HI, {"role": "assistant", "content": "4", "thinking": "2 + 2\n"}, *HI],
    "parts": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " see "}]}],
    "roles": [*HI, *HI, {"role": "hidden", "content": "x"}],
}
VARIABLES: list[dict[str, Any]] = [
    {},
    {"add_generation_prompt": False},
    {"tools": TOOLS},
    {"tools": TOOLS[:1], "tools_in_user_message": False, "date_string": "1 Jan", "enable_thinking": False},
    {
        "documents": [{"title": f"d{n}", "text": "one\ntwo"} for n in range(4)],
        "settings": {"b": "1\t2", "a": 3},
    },
    {
        "outline": [{"name": "a", "parts": [{"name": "b"}, {"name": "c", "parts": [{"name": "d"}]}]}],
        "eos_token": "<end>",
    },
]


@pytest.fixture(scope="module")
def theirs() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(stub.byte_tokenizer(), "test"), **TOKENS
    )


def outcome(make: Any) -> str:
    """The text, or that the template has refused, with its words."""
    try:
        return str(make())
    except SessionError as e:
        return "refused: " + e.message.partition(": ")[2]
    except TemplateError as e:
        return f"refused: {e}"
    except TypeError as e:
        return f"refused: {e}"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("chat", CHATS)
def test_the_text_is_that_of_transformers(theirs: Any, style: str, chat: str) -> None:
    for variables in VARIABLES:
        wanted = outcome(lambda given=variables: theirs.apply_chat_template(
            CHATS[chat], chat_template=STYLES[style], tokenize=False,
            **{"add_generation_prompt": True, **given}))  # fmt: skip
        got = outcome(lambda given=variables: render_chat(STYLES[style], CHATS[chat], TOKENS, given))
        assert got == wanted, variables


def test_most_of_the_styles_are_not_refused() -> None:
    texts = [
        outcome(lambda s=s, c=c: render_chat(s, c, TOKENS)) for s in STYLES.values() for c in CHATS.values()
    ]
    assert sum(not t.startswith("refused") for t in texts) >= 26
    assert "refused: conversation roles must alternate user/assistant" in texts


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("{{ add_generation_prompt }} {{ tools }} {{ documents }}", "True None None"),
        ("{{ 'a' if missing is undefined }}{{ missing }}", "a"),
        ("{{ messages[0].extra }}|{{ messages[0].content }}", "|hi"),
        ("{% generation %}{% set x = 1 %}said{% endgeneration %}{{ x }}", "said"),
        (
            (
                "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}"
                "{% endif %}{{ i }}{% endfor %}"
            ),
            "013",
        ),
        ("{{ strftime_now('%d') | length }}", "2"),
        ("{{ 10**10**8 }}", "1" + "0" * 80),
        ("{{ number + 0.5 }} {{ flag }} {{ path }}", "3.5 True <object>"),
    ],
)
def test_what_templates_get(body: str, text: str) -> None:
    given = {"number": np.int64(3), "flag": np.bool_(True), "path": object()}
    assert render_chat(body, [{"role": "user", "content": "hi", "extra": None}], {}, given) == text


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe."),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe."),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% set ns = namespace(__class__=1) %}",
         ("a namespace cannot have the attribute '__class__': names that begin with an underscore are "
         "private")),
        ("{% include 'secrets' %}", "no loader for this environment specified"),
    ],
)  # fmt: skip
def test_templates_that_are_refused(template: str, said: str) -> None:
    with pytest.raises(SessionError) as caught:
        render_chat(template, HI, {})
    said = f"messages: the chat template refuses these messages: {said}"
    assert str(caught.value) == f"{said}\n  help: pass the prompt as plain text"


STEPS = "it takes more than 1,048,576 steps, or reads more than 1,073,741,824 characters"
LARGE, MADE = (
    "it creates a value or a string of more than 16,777,216 characters",
    "it produces more than 268,435,456 characters in total",
)
TWICE = (
    "{% set ns = namespace(x=START) %}{% for i in range(50) %}{% set ns.x = DOUBLED %}{% endfor %}{{ "
    "ns.x | length }}"
)
GREEDY = {
    "{{ 10**(10**8) }}": "it creates an integer of more than 8,192 bits",
    "{{ 7 ** (9 ** 9) }}": "it creates an integer of more than 8,192 bits",
    "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}":
        "it creates an integer of more than 8,192 bits",
    "{{ 'a' * 10**12 }}": LARGE,
    "{{ 10**12 * 'a' }}": LARGE,
    "{{ ([1] * 10**9) | length }}": LARGE,
    "{{ 'a' | center(10**10) }}": LARGE,
    "{{ 'a'.rjust(10**10) }}": LARGE,
    "{{ ['a', 'b'] | map('center', 10**10) | join }}": LARGE,
    "{{ ('a\n' * 10**5) | indent(10**6) }}": LARGE,
    "{{ '%10000000000d' % 5 }}": LARGE,
    "{{ '{:10000000000}'.format(5) }}": LARGE,
    "{{ '%*d' % (10**9, 5) }}": "it uses a variable as a format width",
    "{{ '{:{}}'.format(5, 10**9) }}": "it uses a variable as a format width",
    "{{ (5).to_bytes(10**10, 'big') }}": LARGE,
    "{{ messages | tojson(indent=10**9) }}": LARGE,
    "{{ ('a' * 10**6).replace('a', 'b' * 10**4) }}": LARGE,
    "{{ 1.5 | round(10**9, 'ceil') }}": LARGE,
    "{{ ('a' * 10**7).split('a') | length }}": LARGE,
    "{{ [1, 2] | batch(10**9, 'x') | list }}": LARGE,
    TWICE.replace("START", "'ab'").replace("DOUBLED", "ns.x ~ ns.x"): LARGE,
    TWICE.replace("START", "'ab'").replace("DOUBLED", "ns.x + ns.x"): LARGE,
    TWICE.replace("START", "[1]").replace("DOUBLED", "[ns.x, ns.x]"): LARGE,
    TWICE.replace("START", "[1]").replace("DOUBLED", "(ns.x, ns.x)"): LARGE,
    TWICE.replace("START", "[1]").replace("DOUBLED", "{'a': ns.x, 'b': ns.x}"): LARGE,
    TWICE.replace("START", "[1]").replace("DOUBLED", "dict(a=ns.x, b=ns.x)"): LARGE,
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": STEPS,
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}": STEPS,
    "{% macro f() %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endmacro %}{{ f() }}": STEPS,
    "{% for i in range(99999) %}" + "x" * 999 + "{% endfor %}": LARGE,
    "{% set x = 'a' * 10**7 %}{% for i in range(99999) %}{% set y = x | upper %}{% endfor %}": MADE,
    "{% set x = 'a' * 10**7 %}{% for i in range(99999) %}{% if x == x ~ '' %}{% endif %}{% endfor %}": MADE,
    "{% set x = 'a' * 10**7 %}{% for i in range(99999) %}{% if 'b' in x %}{% endif %}{% endfor %}": STEPS,
    "{% set x = 'a' * 10**7 %}{% for i in range(99999) %}{% set y = x[1:] %}{% endfor %}": MADE,
    "{{ ('a b ' * 10**5) | wordwrap(3) }}": STEPS,
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}": "its calls are nested more deeply than 64",
    "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(60) }}": STEPS,
    "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}": "its calls are nested more deeply than 64",
    "x" * 300_000: "it has 300,000 characters, more than 262,144",
}  # fmt: skip


@pytest.mark.parametrize("template", GREEDY, ids=lambda t: t[:40])
def test_templates_that_ask_for_too_much(template: str) -> None:
    began = time.process_time()
    with pytest.raises(SessionError) as caught:
        render_chat(template, HI, {})
    said = f"messages: the chat template was stopped: {GREEDY[template]}"
    assert str(caught.value) == f"{said}\n  help: pass the prompt as plain text"
    assert time.process_time() - began < 10


def test_python_ranges_and_deep_text_are_refused_too() -> None:
    for template, said in (
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ " + "(" * 30000, ""),
    ):
        with pytest.raises(SessionError, match=f"the chat template refuses these messages: {said}"):
            render_chat(template, HI, {})


def test_a_long_conversation_is_well_within_the_limits() -> None:
    answer = "<think>\nso\n</think>\n" + "text " * 400
    turn = [{"role": "user", "content": "word " * 400}, {"role": "assistant", "content": answer}]
    for style in ("chatml", "llama-3", "mistral", "qwen", "gemma"):
        text = render_chat(STYLES[style], turn * 250, TOKENS)
        assert text.count("word") == 250 * 400


# ------------------------------------------------------------------ special tokens, named templates, end toke
def test_special_tokens_by_name() -> None:
    config = {
        "bos_token": {"content": "<s>", "lstrip": False},
        "add_bos_token": True,
        "pad_token": None,
        "image_token": "<i>",
    }
    assert special_tokens({**config, "extra_special_tokens": {"say": "<say>"}},
    {"bos_token": "<t>", "eos_token": "</s>"}) == {
        "bos_token": "<s>", "image_token": "<i>", "say": "<say>", "eos_token": "</s>"}  # fmt: skip


def codec(config: Mapping[str, object], templates: Mapping[str, str]) -> TextCodec:
    return TextCodec(tokenizer_of(stub.byte_tokenizer(), "test"), config, templates, special_tokens(config))


def test_tools_choose_their_template() -> None:
    c = codec({}, {"default": "plain", "tool_use": "tools"})
    assert (c.render(HI), c.render(HI, {"tools": TOOLS}), c.render(HI, {"tools": []})) == (
        "plain",
        "tools",
        "plain",
    )
    with pytest.raises(SessionError) as caught:
        codec({}, {"a": "", "b": ""}).render(HI)
    said = "none of the chat templates (a, b) is the default"
    assert str(caught.value) == (f"messages: {said}\n  help: pass the prompt as plain text")


@pytest.mark.parametrize(
    ("config", "ids"),
    [
        ({}, set()),
        ({"eos_token": "<|eos|>"}, {258}),
        ({"eos_token": {"content": "<|d|>"}}, {259}),
        ({"eos_token": "<|nowhere|>"}, set()),
        ({"eos_token": "<|eos|>", "eos_token_id": [256, 257]}, {256, 257, 258}),
        ({"eos_token_id": 7}, {7}),
        ({"eos_token_id": [True, "x"]}, set()),
    ],
)
def test_end_tokens_of_a_tokenizer(config: Mapping[str, object], ids: set[int]) -> None:
    assert codec(config, {}).eos == ids


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"tools": "weather"}, "template: tools: expected a list of JSON schemas, got 'weather'"),
        ({"tools": [len]}, ("template: tools: expected a list of JSON schemas, got '[<built-in function "
                           "len>]'")),
        ({"documents": ["d"]}, ("template: documents: expected a list of objects with title and text, got "
                               "\"['d']\"")),
        ({"messages": []}, "template: messages is not a variable of the chat template\n  help: leave it out"),
        ({"continue_final_message": True},
         "template: continue_final_message is not a variable of the chat template\n  help: leave it out"),
    ],
)  # fmt: skip
def test_variables_of_the_wrong_form(variables: Mapping[str, object], said: str) -> None:
    with pytest.raises(SessionError) as caught:
        render_chat("", HI, {}, variables)
    assert str(caught.value) == said


def test_the_environment_is_for_one_rendering() -> None:
    first, second = BoundedEnvironment(), BoundedEnvironment()
    assert first.render("{{ 1 }}", {}) == second.render("{{ 1 }}", {}) == "1"
    assert first.filters is not second.filters and first.budget.made and "lipsum" not in first.globals
