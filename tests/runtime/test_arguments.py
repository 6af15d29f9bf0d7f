"""Wrong Python arguments of the runtime are named, with what was expected; no other error escapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.runtime.generate import Generation
from tilewright.runtime.model import Model

Use = Callable[[Model], object]


@pytest.fixture(scope="module")
def model(stub_path: Path) -> Model:
    return tw.load(stub_path)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda m: tw.load(None), "load: expected a path, got None"),
        (lambda m: tw.load(5), "load: expected a path, got 5"),
        (lambda m: tw.load(""), "load: expected a path, got ''"),
        (lambda m: tw.load("a\0b"), r"load: expected a path, got 'a\x00b'"),
        (lambda m: tw.load("x.tw", threads="a"), "load: threads: expected an integer, got 'a'"),
        (lambda m: tw.load("x.tw", threads=-1), "load: threads: expected 0 to 1024, got -1"),
        (lambda m: m.session("x"), "session: max_sequences: expected an integer, got 'x'"),
        (lambda m: m.session(1.5), "session: max_sequences: expected an integer, got 1.5"),
        (lambda m: m.session(True), "session: max_sequences: expected an integer, got True"),
        (lambda m: m.session(0), "session: max_sequences: expected 1 to 1048576, got 0"),
        (lambda m: m.session(1, "a"), "session: threads: expected an integer, got 'a'"),
        (lambda m: m.generate(5), ("prompt: expected text, token ids, or messages with role and content, "
                                  "got 5")),
        (lambda m: m.generate(None), ("prompt: expected text, token ids, or messages with role and content, "
                                     "got None")),
        (lambda m: m.generate(b"x"), ("prompt: expected text, token ids, or messages with role and content, "
                                     "got b'x'")),
        (lambda m: m.generate([1.5]), ("prompt: expected text, token ids, or messages with role and "
                                      "content, got a list of 1")),
        (lambda m: m.generate([True]), ("prompt: expected text, token ids, or messages with role and "
                                       "content, got a list of 1")),
        (lambda m: m.generate([-1]), "prompt: token id -1: expected 0 to 259"),
        (lambda m: m.generate([10**30]), f"prompt: token id {10**30}: expected 0 to 259"),
        (lambda m: m.generate("a\ud800"),
         "prompt: is not UTF-8 text: '\\ud800' at 1\n  help: pass text that was decoded from UTF-8"),
        (lambda m: m.generate("x", "a"), "generate: max_new_tokens: expected an integer, got 'a'"),
        (lambda m: m.generate("x", 1.5), "generate: max_new_tokens: expected an integer, got 1.5"),
        (lambda m: m.generate("x", 0), "generate: max_new_tokens: expected at least 1, got 0"),
        (lambda m: m.generate("x", temperature="hot"), "generate: temperature: expected a number, got 'hot'"),
        (lambda m: m.generate("x", top_p=[1]), "generate: top_p: expected a number, got a list of 1"),
        (lambda m: m.generate("x", seed="a"), "generate: seed: expected an integer, got 'a'"),
        (lambda m: m.generate("x", seed=-1), "generate: seed: expected 0 to 18446744073709551615, got -1"),
        (lambda m: m.generate("x", stop=5), "generate: stop: expected a string or a list of strings, got 5"),
        (lambda m: m.generate("x", stop=[5]),
         "generate: stop: expected a string or a list of strings, got a list of 1"),
        (lambda m: m.generate("x", stop=""),
         "generate: stop: an empty stop string would match everywhere\n  help: leave it out"),
        (lambda m: m(None), "model(ids): expected numbers, got None"),
        (lambda m: m("x"), "model(ids): expected numbers, got 'x'"),
        (lambda m: m(object), "model(ids): expected numbers, got <class 'object'>"),
        (lambda m: m([1.5]), ("step, item 0: ids: expected a non-empty list of integers, got float64 of "
                             "shape (1,)")),
        (lambda m: m.session().step(5), "step: expected a list of (sequence, ids, want), got 5"),
        (lambda m: m.session().step([1]), "step, item 0: expected (sequence, ids, want), got 1"),
        (lambda m: m.session().step([(0, "x", "all")]), "step, item 0: expected numbers, got 'x'"),
        (lambda m: m.session().drop([]),
         "session: sequence [] is not in this session; live: none\n  help: create one with add()"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(model: Model, use: Use, message: str) -> None:
    with pytest.raises(tw.SessionError) as e:
        use(model)
    assert str(e.value) == message


def test_integers_of_numpy_are_integers(model: Model) -> None:
    got = model.generate(np.array([72, 105]), max_new_tokens=np.int64(2), seed=np.int32(1))
    assert isinstance(got, Generation) and len(got.ids) == 2


def test_the_repr_of_a_generation_is_short(model: Model) -> None:
    got = model.generate([72] * 90, max_new_tokens=2)
    assert "prompt_ids" not in repr(got) and repr(got).startswith(
        f"Generation(ids={got.ids}, text={got.text!r}, finish='length'"
    )
    assert got.prompt_ids == [72] * 90
