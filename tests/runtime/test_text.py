"""Text: pieces never split a character, stop strings never show."""

from __future__ import annotations

import random

import pytest

from tests.runtime import stub
from tilewright.runtime.errors import SessionError
from tilewright.runtime.text import Streamer, TextCodec, tokenizer_of

TEXTS = [
    "plain words",
    "żółć, naïve, 数学の本",
    "👩‍👩‍👧 family 🏳️‍🌈",
    "mixed\n\ttabs  and   spaces ",
    "�real replacement�",
]


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(tokenizer_of(stub.byte_tokenizer(), "test"), {}, {})


def pieces_of(codec: TextCodec, text: str, stop: tuple[str, ...] = (), prompt: str = "") -> list[str]:
    s = Streamer(codec, codec.encode(prompt), stop)
    out = [s.push(i) for i in codec.encode(text)]
    return [*out, s.finish()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prompt", ["", "before ", "é"])
def test_pieces_join_to_the_text_and_are_whole_characters(codec: TextCodec, text: str, prompt: str) -> None:
    pieces = pieces_of(codec, text, prompt=prompt)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in p for p in pieces)


def test_random_bytes_stream_to_what_decoding_at_once_gives(codec: TextCodec) -> None:
    rng = random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(256) for _ in range(rng.randrange(1, 40))]
        s = Streamer(codec, [])
        out = "".join([*(s.push(i) for i in ids), s.finish()])
        assert out.replace("\ufffd", "") == codec.decode(ids).replace("\ufffd", "")


@pytest.mark.parametrize(
    ("text", "stop", "left"),
    [
        ("one END two", ("END",), "one "),
        ("one EN two", ("END",), "one EN two"),
        ("one EN", ("END",), "one EN"),
        ("aaab", ("aab",), "a"),
        ("x\n\ny", ("\n\n", "y"), "x"),
        ("früh stück", ("ü",), "fr"),
        ("anything", ("",), "anything"),
    ],
)
def test_stop_strings_never_show(codec: TextCodec, text: str, stop: tuple[str, ...], left: str) -> None:
    assert "".join(pieces_of(codec, text, stop)) == left


def test_messages_without_a_template(codec: TextCodec) -> None:
    with pytest.raises(SessionError, match="no chat template"):
        codec.chat([{"role": "user", "content": "hi"}])
