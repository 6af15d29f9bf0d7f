"""Files of sequences: read back they continue bit by bit, and a damaged or foreign one is refused by name."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.compiler.test_compiled_llama import llama_artifact
from tests.passes.models import Llama
from tilewright.recipe import resolve_recipe
from tilewright.runtime.errors import SessionError
from tilewright.runtime.model import Model, load
from tilewright.runtime.saved import MAGIC, read_saved

SHAPE = Llama(heads=2, kv_heads=1, dim=16, rotary=16, hidden=32, inner=32, vocab=64)
IDS = np.random.default_rng(9).integers(0, 64, 900)
CASES = {"f32": ("f32", ""), "int8(token)": ("int8(token)", ""), "window": ("bf16", "window(recent=100)")}
CASES["snapkv"] = "f32", "snapkv(budget=0.3)"
CASES["full"] = "f32", "full"
CASES["recent"] = "int4(group=16) + recent(32)", ""
QUICK = ("f32", "window", "recent")


@pytest.fixture(
    scope="module", params=[c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    kv, cache = CASES[request.param]
    recipe = resolve_recipe({"base": "f32", "kv": kv, "cache": cache, "context": 1024})
    return load(llama_artifact(SHAPE, recipe, tmp_path_factory.mktemp("saves")), threads=1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    recipe = resolve_recipe({"base": "f32", "context": 1024})
    return load(llama_artifact(SHAPE, recipe, tmp_path_factory.mktemp("plain")), threads=1)


@pytest.mark.parametrize("forked", [False, True])
def test_a_sequence_read_back_continues_as_before(model: Model, tmp_path: Path, forked: bool) -> None:
    with model.session(2) as s, model.session() as other:
        seq = s.add()
        s.step([(seq, IDS[:700], None)])
        seq = s.fork(seq) if forked else seq
        s.step([(seq, IDS[700:703], None)])
        s.save(seq, tmp_path / "seq")
        back = other.load(tmp_path / "seq")
        assert other.ids(back) == IDS[:703].tolist()
        for n in range(703, 730):
            [a], [b] = s.step([(seq, IDS[n : n + 1], True)]), other.step([(back, IDS[n : n + 1], True)])
            assert a is not None and b is not None and np.array_equal(a, b)


# ------------------------------------------------------------------ prompt caches
def test_generation_goes_on_from_a_prompt_cache(model: Model, tmp_path: Path) -> None:
    file, prompt = tmp_path / "cache", IDS[:300].tolist()
    first = model.generate(prompt, 5, temperature=0, prompt_cache=file)
    longer = [*prompt, *first.ids, *IDS[:40].tolist()]
    again = model.generate(longer, 5, temperature=0, prompt_cache=file)
    assert again.reused == len(prompt) + 4  # the last token was chosen and not read
    if str(model.policy() or "full") == "full":
        assert again.ids == model.generate(longer, 5, temperature=0).ids
        exact = any(c.recent for c in model.manifest.states)  # then it can go back only a little
        for same in (320, 200):
            other = [*longer[:same], 1, 2, 3]
            found = model.generate(other, 5, temperature=0, prompt_cache=file)
            assert found.ids == model.generate(other, 5, temperature=0).ids
            assert found.reused == 0 if exact and same == 200 else found.reused >= same


def test_another_prompt_uses_what_is_common(plain: Model, tmp_path: Path) -> None:
    file, prompt = tmp_path / "cache", IDS[:300].tolist()
    plain.generate(prompt, 3, temperature=0, prompt_cache=file)
    other = [*prompt[:200], (prompt[200] + 1) % 64, 5]
    found = plain.generate(other, 5, temperature=0, prompt_cache=file)
    assert found.reused == 200 and found.ids == plain.generate(other, 5, temperature=0).ids
    same = plain.generate(other[:150], 5, temperature=0, prompt_cache=file)
    assert same.reused == 149 and same.ids == plain.generate(other[:150], 5, temperature=0).ids


# ------------------------------------------------------------------ refused
def header(data: bytes, change: Callable[[dict[str, object]], None]) -> bytes:
    size = int.from_bytes(data[8:16], "little")
    head = json.loads(data[16 : 16 + size])
    change(head)
    text = json.dumps(head).encode()
    return data[:8] + len(text).to_bytes(8, "little") + text + data[16 + size :]


def setter(key: str, value: object) -> Callable[[bytes], bytes]:
    return lambda data: header(data, lambda head: head.update({key: value}))


WRONG: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda d: b"", "is not a file of a saved sequence"),
    "another file": (lambda d: b"GGUF" + d[4:], "is not a file of a saved sequence"),
    "cut short": (lambda d: d[:-5], "its contents are not those that were saved"),
    "longer": (lambda d: d + b"x", "its contents are not those that were saved"),
    "a byte": (lambda d: d[:-1] + bytes([d[-1] ^ 1]), "its contents are not those that were saved"),
    "cut header": (lambda d: d[:40], "is not a file of a saved sequence"),
    "no JSON": (lambda d: MAGIC + (4).to_bytes(8, "little") + b"[[[[", "has version None"),
    "newer": (setter("version", 2), "has version 2, this version of tilewright reads 1"),
    "another model": (setter("model", "x"), "was saved by another model"),
    "another policy": (
        setter("policy", "h2o(budget=0.1)"),
        "was saved under the cache policy h2o(budget=0.1)",
    ),
    "a number as text": (setter("length", "5"), "its header is not that of a saved sequence"),
    "axes": (setter("memory", {"a": [1] * 100}), "its header is not that of a saved sequence"),
    "negative": (setter("length", -5), "its header is not that of a saved sequence"),
    "other length": (setter("length", 100), "bytes after the header"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_and_nothing_is_lost(plain: Model, tmp_path: Path, name: str) -> None:
    damage, message = WRONG[name]
    with plain.session(2) as s:
        seq = s.add()
        s.step([(seq, IDS[:50], None)])
        s.save(seq, tmp_path / "good")
        (tmp_path / "bad").write_bytes(damage((tmp_path / "good").read_bytes()))
        with pytest.raises(SessionError) as e:
            s.load(tmp_path / "bad")
        assert message in str(e.value)
        assert s.lengths == {seq: 50} and s.load(tmp_path / "good") == 1


def test_what_is_no_file_is_refused(plain: Model, tmp_path: Path) -> None:
    with plain.session() as s:
        with pytest.raises(SessionError, match="cannot be read"):
            s.load(tmp_path / "nothing")
        with pytest.raises(SessionError, match="cannot be read"):
            s.load(tmp_path)
        seq = s.add()
        with pytest.raises(SessionError, match="cannot be written"):
            s.save(seq, tmp_path / "no" / "folder")


def test_damaged_rows_of_a_sealed_file_are_refused_or_harmless(model: Model, tmp_path: Path) -> None:
    """Whoever seals a file anew may change counts and positions: they are checked, no step reads beyond."""
    r, refused = random.Random(3), 0
    with model.session(2) as s:
        seq = s.add()
        s.step([(seq, IDS[:600], None)])
        s.save(seq, tmp_path / "good")
        saved = read_saved(tmp_path / "good")
        for _ in range(40):
            rows = saved.rows.copy()
            for _ in range(r.choice([1, 4, 400])):
                rows[r.choice([r.randrange(min(200, len(rows))), r.randrange(len(rows))])] = r.randrange(256)
            try:
                s.native.restore(
                    1, saved.ids, rows[: r.choice([len(rows), len(rows), r.randrange(len(rows))])]
                )
            except SessionError:
                refused += 1
                continue
            s._lengths[1], s._ids[1] = 600, saved.ids.tolist()
            if s.caches is not None:
                s.caches.progress[1] = s.caches.progress[seq].copy()
            s.step([(1, [3], "last")])
            s.drop(1)
    assert refused > 5
