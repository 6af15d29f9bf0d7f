"""Rotary factors that depend on the sequence length (longrope, dynamic), on both sides of the limit.

longrope equals eager PyTorch without a cache at every length, however tokens arrive. dynamic changes its base
with every token beyond the original context: a prompt equals eager, and tokens after it equal PyTorch with
its cache, where keys stay as they were.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.compiler import families
from tests.four_values import assert_agree, four_values
from tilewright.backends.step import PlanError, length_switches
from tilewright.capture import capture_directory
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.random_values import Step
from tilewright.ir.plan.core import Program
from tilewright.ir.plan.step import BLOCK
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.driver import run_passes
from tilewright.passes.pipelines import LOWERING
from tilewright.recipe import PRESETS
from tilewright.runtime.errors import SessionError
from tilewright.runtime.model import Model
from tilewright.runtime.session import Session

TOLERANCE = 1e-4
#: the length beyond which factors change, and what is compiled: up to `CONTEXT` tokens
ORIGINAL, CONTEXT = 32, 80
#: sizes whose kernels have half of the text of those of other tests
SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
_BASE = {**families._BASE, **SIZES}
_FACTORS = {"short_factor": [1.0 + 0.2 * n for n in range(4)], "long_factor": [2.0 + 2 * n for n in range(4)]}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "original_max_position_embeddings": ORIGINAL,
    **_FACTORS,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
_PLAIN = {"rope_type": "default", "rope_theta": 10.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": ("llama", {**_BASE, "rope_parameters": _LONG}),
    "phi3": ("phi3", {**_BASE, "rope_parameters": _LONG,
    "original_max_position_embeddings": ORIGINAL}),
    "phimoe": (
        "phimoe",
        {**_BASE, **families._MOE, "num_local_experts": 4,
        "original_max_position_embeddings": ORIGINAL,
         "rope_parameters": {**_LONG, "short_mscale": 1.2, "long_mscale": 1.5}},
    ),
    "dynamic": ("llama", {**_BASE, "max_position_embeddings": ORIGINAL,
    "rope_parameters": _DYNAMIC}),
}  # fmt: skip
#: longrope in other code: Phi-3's, and one that only scales its tables by the length
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("phi3", "phimoe")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lengths")


def compiled(home: Path, name: str) -> tuple[Model, Path]:
    directory, path = home / name, home / f"{name}.tw"
    if not path.exists():
        families.make_model(*MODELS[name]).save_pretrained(directory)
        tw.compile(directory, recipe="f32", context=CONTEXT).save(path)
    return tw.load(path, threads=2), directory


@pytest.fixture(scope="module", params=["longrope", *OTHERS])
def long(request: pytest.FixtureRequest, home: Path) -> tuple[Model, Path]:
    return compiled(home, request.param)


@pytest.fixture(scope="module")
def dynamic(home: Path) -> tuple[Model, Path]:
    return compiled(home, "dynamic")


IDS = families.prompt(96, 3, CONTEXT)


def eager(directory: Path, ids: np.ndarray) -> np.ndarray:
    """Of one sequence alone, from a model that has seen no other."""
    return families.eager_logits(directory, ids[None])[0]


def last(session: Session, *work: tuple[int, np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(x)[0] for x in session.step([(seq, ids, "last") for seq, ids in work])]


def near(got: np.ndarray, want: np.ndarray) -> bool:
    return families.distance(got, want) <= TOLERANCE


# ------------------------------------------------------------------ both
@pytest.mark.parametrize("name", ["longrope", "dynamic", *OTHERS])
@pytest.mark.parametrize("length", [1, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, CONTEXT])
def test_a_prompt_in_one_go(home: Path, name: str, length: int) -> None:
    model, directory = compiled(home, name)
    assert near(np.asarray(model(IDS[0, :length])), eager(directory, IDS[0, :length]))


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_the_factors_matter(home: Path, name: str) -> None:
    """Those of a shorter sequence are far off: what these tests allow is a thousandth of it."""
    _, directory = compiled(home, name)
    whole, part = eager(directory, IDS[0]), eager(directory, IDS[0, :ORIGINAL])
    assert families.distance(whole[:ORIGINAL], part) > 0.05


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_sequences_of_a_batch_have_their_own_lengths(home: Path, name: str) -> None:
    model, directory = compiled(home, name)
    lengths = (ORIGINAL - 5, CONTEXT, ORIGINAL + 1)
    with model.session(3) as s:
        got = last(s, *[(s.add(), row[:n]) for row, n in zip(IDS, lengths, strict=True)])
    for x, row, n in zip(got, IDS, lengths, strict=True):
        assert near(x, eager(directory, row[:n])[-1])


@pytest.mark.parametrize("name", [pytest.param("longrope", marks=pytest.mark.slow), "dynamic"])
def test_a_prompt_longer_than_a_step(home: Path, name: str, tmp_path: Path) -> None:
    """A session cuts it into steps of 512 tokens; the first of them must know how long it all is."""
    kind, fields = MODELS[name]
    parameters = {**fields["rope_parameters"]} | (
        {"original_max_position_embeddings": 520} if name == "longrope" else {}
    )
    fields = {
        **fields,
        "max_position_embeddings": 1000 if name == "longrope" else 520,
        "rope_parameters": parameters,
    }
    families.make_model(kind, fields).save_pretrained(tmp_path)
    tw.compile(tmp_path, recipe="f32", context=700).save(tmp_path / "m.tw")
    ids = families.prompt(96, 1, 600)[0]
    model = tw.load(tmp_path / "m.tw", threads=2)
    assert near(np.asarray(model(ids)), eager(tmp_path, ids))
    if name == "longrope":
        with model.session(1) as s:
            seq = s.add()
            last(s, (seq, ids[:515]))
            assert near(last(s, (seq, ids[515:521]))[0], eager(tmp_path, ids[:521])[-1])


@pytest.mark.parametrize("name", ["longrope", pytest.param("dynamic", marks=pytest.mark.slow)])
def test_four_values(home: Path, name: str) -> None:
    """One step with a short sequence and one beyond the limit: eager, graph and tiles interpreted,
    compiled."""
    _, directory = compiled(home, name)
    recipe = replace(PRESETS["f32"], context=CONTEXT)
    fused = run_passes(capture_directory(directory), recipe.pipeline("decoder")).module
    step, lengths = Step((3, ORIGINAL + 2), (0, 0)), np.array([3, ORIGINAL + 2], np.int32)
    inputs = {
        "ids": np.concatenate([row[:n] for row, n in zip(IDS, lengths, strict=False)]), "pos": step.pos,
        "seq": step.seq,
        "blocks": step.blocks(BLOCK), "rows": np.arange(sum(lengths), dtype=np.int32),
        "length": lengths[step.seq],
    }  # fmt: skip
    want = np.concatenate([eager(directory, row[:n]) for row, n in zip(IDS, lengths, strict=False)])
    program = run_passes(fused, ", ".join(LOWERING)).program
    assert_agree(
        four_values(fused, program, "step", inputs, WeightStore(directory), eager={"logits": want}), TOLERANCE
    )


# ------------------------------------------------------------------ longrope: the whole sequence changes at o
def test_token_by_token_across_the_limit(long: tuple[Model, Path]) -> None:
    model, directory = long
    with model.session(1) as s:
        seq = s.add()
        last(s, (seq, IDS[0, : ORIGINAL - 3]))
        for n in range(ORIGINAL - 2, ORIGINAL + 4):
            [got] = last(s, (seq, IDS[0, n - 1 : n]))
            assert near(got, eager(directory, IDS[0, :n])[-1]), n


def test_however_tokens_arrive(long: tuple[Model, Path]) -> None:
    """The last logits are the same to the bit: in one go, in pieces that end before, at and after the limit,
    beside others."""
    model, _ = long
    with model.session(2) as s:
        [want] = last(s, (s.add(), IDS[0, :60]))
        for cuts in ((ORIGINAL - 1, ORIGINAL, ORIGINAL + 1), (ORIGINAL,), (5, ORIGINAL + 7), (1, 2, 40)):
            seq = s.add()
            for a, b in zip((0, *cuts), (*cuts, 60), strict=True):
                [got] = last(s, (seq, IDS[0, a:b]))
            np.testing.assert_array_equal(got, want, err_msg=str(cuts))
            s.drop(seq)


def test_short_and_long_ones_share_steps(long: tuple[Model, Path]) -> None:
    """One crosses the limit while another stays below it and a third is long already."""
    model, directory = long
    with model.session(3) as s:
        a, b, c = s.add(), s.add(), s.add()
        last(s, (a, IDS[0, : ORIGINAL - 1]), (b, IDS[1, :4]), (c, IDS[2, :50]))
        for n in range(3):
            end = (ORIGINAL + n, 5 + n, 51 + n)
            got = last(s, *[(q, row[e - 1 : e]) for q, row, e in zip((a, b, c), IDS, end, strict=True)])
            for x, row, e in zip(got, IDS, end, strict=True):
                assert near(x, eager(directory, row[:e])[-1]), (n, e)


def test_forks_and_shorter_again(long: tuple[Model, Path]) -> None:
    """A fork of a short sequence grows long and the other way round: what is cached is read again under the
    factors needed."""
    model, directory = long
    with model.session(2) as s:
        a = s.add()
        last(s, (a, IDS[0, :ORIGINAL]))
        b = s.fork(a)
        [grown] = last(s, (b, IDS[0, ORIGINAL:40]))
        assert near(grown, eager(directory, IDS[0, :40])[-1])
        s.truncate(b, 20)
        [shrunk] = last(s, (b, IDS[1, 20:25]))
        assert near(shrunk, eager(directory, np.concatenate([IDS[0, :20], IDS[1, 20:25]]))[-1])
        s.truncate(a, ORIGINAL - 1)
        [same] = last(s, (a, IDS[0, ORIGINAL - 1 : ORIGINAL]))
        assert near(same, eager(directory, IDS[0, :ORIGINAL])[-1])


def test_generated_tokens_are_eager_ones(long: tuple[Model, Path]) -> None:
    model, directory = long
    got = model.generate(IDS[0, : ORIGINAL - 4].tolist(), max_new_tokens=12, temperature=0.0)
    ids = IDS[0, : ORIGINAL - 4].tolist()
    for token in got.ids:
        assert token == int(eager(directory, np.asarray(ids, np.int32))[-1].argmax())
        ids.append(token)


def test_from_c(home: Path, repo: Path, tmp_path: Path) -> None:
    """The C example steps one token at a time; what passes the limit is read again within its step."""
    model, _ = compiled(home, "longrope")
    source, headers = repo / "examples/embed/main.c", repo / "runtime/native"
    subprocess.run(
        ["cc", "-O1", f"-I{headers}", "-o", tmp_path / "embed", source, "-ldl"],
        check=True,
        capture_output=True,
    )
    prompt = [str(i) for i in IDS[0, : ORIGINAL - 2]]
    done = subprocess.run(
        [tmp_path / "embed", home / "longrope.tw", "8", *prompt], capture_output=True, text=True, check=True
    )
    ids = IDS[0, : ORIGINAL - 2].tolist()
    for printed in map(int, done.stdout.split()):
        assert printed == int(np.asarray(model(ids))[-1].argmax())
        ids.append(printed)


def test_no_more_can_be_expected_than_fits(long: tuple[Model, Path]) -> None:
    with long[0].session(1) as s:
        for sequence, length, words in (
            (0, CONTEXT + 1, f"tw_expect: expected a length of 0 to {CONTEXT}, got {CONTEXT + 1}"),
            (1, 5, "tw_expect: sequence 1, expected 0 to 0"),
        ):
            with pytest.raises(SessionError) as e:
                s.native.expect(sequence, length)
            assert str(e.value) == words


# ------------------------------------------------------------------ dynamic: the base moves with every token
def with_cache(directory: Path, ids: np.ndarray, prompt: int) -> np.ndarray:
    """Transformers' own logits after the prompt and after each further token, with its cache."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    ).eval()
    out, cache = [], None
    with torch.no_grad():
        for a, b in [(0, prompt), *[(n, n + 1) for n in range(prompt, len(ids))]]:
            step = model(torch.from_numpy(ids[None, a:b]).long(), past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            out.append(step.logits[0, -1].numpy())
    return np.stack(out)


@pytest.mark.parametrize("prompt", [ORIGINAL - 2, ORIGINAL, ORIGINAL + 9])
def test_dynamic_decodes_as_transformers_does(dynamic: tuple[Model, Path], prompt: int) -> None:
    model, directory = dynamic
    ids = IDS[1, : prompt + 8]
    with model.session(1) as s:
        seq = s.add()
        got = [
            *last(s, (seq, ids[:prompt])),
            *[last(s, (seq, ids[n : n + 1]))[0] for n in range(prompt, len(ids))],
        ]
    assert near(np.stack(got), with_cache(directory, ids, prompt))


# ------------------------------------------------------------------ what is known of them
@pytest.mark.parametrize("told", ["32", (0,), (1 << 31,), (True,), (None,)])
def test_switches_that_are_none(told: object) -> None:
    """A program's text may say anything; what reaches the C source are numbers of positions."""
    with pytest.raises(PlanError) as e:
        length_switches(Program((), (), (), (), (), (("switches", told),)))
    assert str(e.value) == f"refused: meta switches: expected numbers of positions, got {told!r}"


def test_what_capture_says(home: Path) -> None:
    compiled(home, "longrope"), compiled(home, "dynamic")
    meta = dict(capture_directory(home / "longrope").meta)
    assert meta["context"] == 128 and meta["switches"] in ((ORIGINAL,), [ORIGINAL])
    meta = dict(capture_directory(home / "dynamic").meta)
    assert meta["context"] == ORIGINAL and "switches" not in meta


@pytest.mark.slow
def test_layers_of_different_kinds(tmp_path: Path) -> None:
    kind, fields = families.FAMILIES["gemma3_text"]
    rope = {"sliding_attention": _PLAIN, "full_attention": _DYNAMIC}
    families.make_model(
        kind, {**fields, **SIZES, "max_position_embeddings": ORIGINAL, "rope_parameters": rope}
    ).save_pretrained(tmp_path)
    tw.compile(tmp_path, recipe="f32", context=CONTEXT).save(tmp_path / "m.tw")
    assert near(np.asarray(tw.load(tmp_path / "m.tw")(IDS[0, :50])), eager(tmp_path, IDS[0, :50]))


def test_a_rotary_that_cannot_follow_keeps_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what is captured holds up to the original context, and a longer one is refused."""
    from tilewright.capture import rotary
    from tilewright.capture.huggingface import capture_directory as capture
    from tilewright.pipeline import run_pipeline

    families.make_model(*MODELS["longrope"]).save_pretrained(tmp_path)
    monkeypatch.setattr(rotary, "_agree", lambda *_: False)
    module = capture(tmp_path)
    assert dict(module.meta)["context"] == ORIGINAL
    with pytest.raises(RefusedError) as e:
        run_pipeline(module, PRESETS["f32"], context=33)
    assert "a context of 33 positions, the rotary factors are known for 32\n  help: use at most 32" in str(
        e.value
    )
