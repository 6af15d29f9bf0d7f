"""Generation on the stub model, whose every next token is known: ends, options, streams, errors."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.runtime.stub import CONTEXT, expected_next
from tests.runtime.test_artifact import edit
from tilewright.runtime.errors import ArtifactError, SessionError
from tilewright.runtime.generate import Generation, TextStream, merged_sampling
from tilewright.runtime.model import Model, load


@pytest.fixture(scope="module")
def model(stub_path: Path) -> Model:
    return load(stub_path, threads=1)


def chain(ids: list[int], n: int) -> list[int]:
    out = list(ids)
    for _ in range(n):
        out.append(expected_next(out))
    return out[len(ids) :]


def finished(x: Generation | TextStream) -> Generation:
    assert isinstance(x, Generation)
    return x


def test_greedy_follows_the_model(model: Model) -> None:
    got = finished(model.generate("Hello", max_new_tokens=10))
    assert got.prompt_ids == list(b"Hello") and got.ids == chain(list(b"Hello"), 10)
    assert got.finish == "length" and str(got) == got.text == bytes(got.ids).decode(errors="replace")


def test_a_stream_gives_the_same_text(model: Model) -> None:
    whole = finished(model.generate("Hello", max_new_tokens=20))
    stream = model.generate("Hello", max_new_tokens=20, stream=True)
    assert isinstance(stream, TextStream)
    assert "".join(stream) == whole.text and stream.result.ids == whole.ids


def test_a_stream_that_is_closed_keeps_what_there_is(model: Model) -> None:
    stream = model.generate("Hello", max_new_tokens=20, stream=True)
    assert isinstance(stream, TextStream)
    first = next(stream)
    stream.close()
    assert stream.result.finish == "stopped" and stream.result.text.startswith(first)


def test_the_context_ends_it(model: Model) -> None:
    got = finished(model.generate([1] * (CONTEXT - 3), max_new_tokens=50))
    assert got.finish == "context" and got.ids == chain([1] * (CONTEXT - 3), 4)


def test_an_eos_id_ends_it(stub_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(stub_path, tmp_path / "m.tw"))
    ids = chain([5, 6], 6)
    text = json.dumps({"eos_token_id": ids[3]})
    (path / "generation_config.json").write_text(text)
    entry = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    edit(path, lambda b: b["files"].update({"generation_config.json": entry}))
    got = finished(load(path).generate([5, 6], max_new_tokens=6))
    assert got.finish == "eos" and got.ids == ids[: ids.index(ids[3])]


def test_a_stop_string_ends_it(model: Model) -> None:
    whole = finished(model.generate("Hello", max_new_tokens=30)).text
    at = next(
        i
        for i in range(4, len(whole))
        if whole.find(whole[i : i + 2]) == i and "\ufffd" not in whole[i : i + 2]
    )
    got = finished(model.generate("Hello", max_new_tokens=30, stop=whole[at : at + 2]))
    assert got.finish == "stop" and got.text == whole[:at]


def test_seeds_decide_draws(model: Model) -> None:
    def draw(seed: int) -> list[int]:
        return finished(model.generate("Hello", max_new_tokens=12, temperature=30.0, seed=seed)).ids

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("narrow", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_narrowing_the_choice_draws_from_it(model: Model, narrow: dict[str, Any]) -> None:
    """Without a temperature it is 1, or the generation config's; a temperature of 0 that was requested
    stays."""
    assert model.request("x", **narrow).sampling.temperature == 1.0
    assert model.request("x", **narrow, temperature=0.0).sampling.temperature == 0.0
    assert model.request("x", **narrow, temperature=0.3).sampling.temperature == 0.3
    assert merged_sampling({"temperature": 0.7, "do_sample": False}, narrow)["temperature"] == 0.7
    assert merged_sampling({"temperature": 0.7, "do_sample": True}, narrow)["temperature"] == 0.7


@pytest.mark.parametrize(
    "off", [{}, {"top_k": 0}, {"top_p": 1.0}, {"min_p": 0.0}, {"repetition_penalty": 1.2}], ids=str
)
def test_greedy_unless_asked(model: Model, off: dict[str, Any]) -> None:
    assert model.request("x", **off).sampling.temperature == 0.0


def test_ids_of_any_integer_type(model: Model) -> None:
    want = finished(model.generate([65, 66], max_new_tokens=2)).ids
    for same in (
        np.array([65, 66]),
        np.array([65, 66], np.uint8),
        torch.tensor([65, 66]),
        (np.int64(65), 66),
    ):
        assert finished(model.generate(same, max_new_tokens=2)).ids == want  # type: ignore[arg-type]


def test_a_chat_goes_through_the_template(model: Model) -> None:
    ids = model.prompt_ids([{"role": "user", "content": "hi"}])
    assert ids == [256, *b"user: hi", 257, 256]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([1] * CONTEXT, {}, f"the prompt has {CONTEXT} tokens, the context holds {CONTEXT}"),
        ("x" * 500, {}, "the prompt has 500 tokens, the context holds 100"),
        ([1, "a"], {}, "expected text, token ids, or messages"),
        ([300], {}, "token id 300: expected 0 to 259"),
        ([-1], {}, "token id -1: expected 0 to 259"),
        ([1 << 70], {}, f"token id {1 << 70}: expected 0 to 259"),
        ([True], {}, "expected text, token ids, or messages with role and content, got a list of 1"),
        ([1.0], {}, "expected text, token ids, or messages with role and content, got a list of 1"),
        (
            torch.tensor([1.5]),
            {},
            "expected text, token ids, or messages with role and content, got a list of 1",
        ),
        (
            torch.tensor([[1, 2]]),
            {},
            "expected text, token ids, or messages with role and content, got a list of 1",
        ),
        ([1], {"max_new_tokens": 0}, "max_new_tokens: expected at least 1"),
        ([1], {"temperature": -1.0}, "temperature: expected 0"),
    ],
)
def test_wrong_requests_are_named(
    model: Model, prompt: object, options: dict[str, float], message: str
) -> None:
    with pytest.raises(SessionError, match=message):
        model.generate(prompt, **options)  # type: ignore[arg-type]


def test_an_artifact_without_a_tokenizer(stub_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(stub_path, tmp_path / "m.tw"))
    edit(path, lambda b: b["files"].pop("tokenizer.json"))
    m = load(path)
    assert finished(m.generate([65], max_new_tokens=2)).ids == chain([65], 2)
    with pytest.raises(ArtifactError, match="has no tokenizer"):
        m.generate("text")
    with pytest.raises(SessionError, match="stop strings need a tokenizer"):
        m.generate([65], stop="x")


def test_the_tokenizers_own_end_token_ends_it_beside_the_generation_configs(model: Model) -> None:
    assert model.request("x").eos == {258, 259}
    model.codec.special = {"eos_token": "<|b|>"}
    try:
        assert model.request("x").eos == {257, 258, 259}
    finally:
        model.codec.special = {"eos_token": "<|eos|>"}


def test_variables_reach_the_chat_template(model: Model) -> None:
    hi = [{"role": "user", "content": "hi"}]
    assert model.prompt_ids(hi, {"add_generation_prompt": False}) == [256, *b"user: hi", 257]
    got = finished(model.generate(hi, max_new_tokens=1, template={"add_generation_prompt": False}))
    assert got.prompt_ids == [256, *b"user: hi", 257]
    with pytest.raises(SessionError) as caught:
        model.generate("hi", template={"tools": [], "documents": []})
    said = (
        "template: tools, documents: the prompt does not use a chat template\n  help: pass messages "
        "instead of text or ids"
    )
    assert str(caught.value) == said
