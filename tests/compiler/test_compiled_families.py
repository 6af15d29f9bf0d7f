"""Every supported family, compiled and loaded: equal to eager, and bit-identical for any chunking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.compiler import families
from tilewright.ir.text.plan_parser import parse_ir
from tilewright.passes.record import print_ir
from tilewright.runtime.model import Model

#: largest difference allowed in f32, as a share of the logit range
TOLERANCE = 1e-4
FAST = ("mixtral",)
BF16 = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt", "bloom",
    "gpt_oss", "mixtral", "qwen3_moe",
)  # fmt: skip
NAMES = [
    pytest.param(n, marks=pytest.mark.shipped_flags if n in FAST else pytest.mark.slow)
    for n in families.FAMILIES
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def compiled(home: Path, name: str, recipe: str, level: str = "native") -> tuple[Model, Path]:
    directory = families.write_model(home / name, name)
    path = home / f"{name}-{recipe}-{level}.tw"
    tw.compile(directory, recipe=recipe, target=level).save(path)
    return tw.load(path, threads=2), directory


def whole(model: Model, ids: np.ndarray) -> np.ndarray:
    with model.session(1) as s:
        return np.asarray(s.step([(s.add(), ids, "all")])[0])


def in_pieces(model: Model, ids: np.ndarray, *sizes: int) -> np.ndarray:
    """Prefill chunks of these sizes, then one token per step."""
    with model.session(1) as s:
        seq, out, at = s.add(), [], 0
        for n in (*sizes, *[1] * (len(ids) - sum(sizes))):
            out.append(np.asarray(s.step([(seq, ids[at : at + n], "all")])[0]))
            at += n
    return np.concatenate(out)


def mixed(model: Model, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two sequences that share steps: prefill of one beside decodes of the other; then a fork of the first
    goes on."""
    with model.session(3) as s:
        a, b = s.add(), s.add()
        out_a = [np.asarray(s.step([(a, first[:5], "all")])[0])]
        out_b = []
        for n in range(5, 9):
            got = s.step([(b, second[3 * (n - 5) : 3 * (n - 4)], "all"), (a, first[n : n + 1], "all")])
            out_b.append(np.asarray(got[0]))
            out_a.append(np.asarray(got[1]))
        c = s.fork(a)
        got = s.step([(b, second[12:], "all"), (c, first[9:], "all")])
        return np.concatenate([*out_a, np.asarray(got[1])]), np.concatenate([*out_b, np.asarray(got[0])])


def stages_read_back(artifact: Path) -> None:
    """parse(print(x)) == x for every stage."""
    stages = sorted((artifact / "ir").glob("*.ir"))
    assert len(stages) > 10
    for path in stages:
        text = path.read_text("utf-8")
        ir = parse_ir(text, path.name)
        assert not isinstance(ir, tuple)
        assert print_ir(ir) == text, path.name


@pytest.mark.parametrize("name", NAMES)
def test_family(home: Path, name: str) -> None:
    check_family(home, name, "native")


@pytest.mark.slow
@pytest.mark.parametrize("level", ["baseline", "avx2"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_oss", "mixtral", "bloom"])
def test_family_on_lesser_cpus(home: Path, name: str, level: str) -> None:
    """The same as on this machine's best level, for CPUs without AVX-512 or without any of it."""
    check_family(home, name, level)


def check_family(home: Path, name: str, level: str) -> None:
    model, directory = compiled(home, name, "f32", level)
    assert level in ("native", model.level)
    if level == "native":
        stages_read_back(home / f"{name}-f32-{level}.tw")
    first, second = families.prompt(96).astype(np.int32)
    full = whole(model, first)
    eager = families.eager_logits(directory, np.stack([first, second]))
    assert families.distance(full, eager[0]) <= TOLERANCE
    np.testing.assert_array_equal(in_pieces(model, first), full, err_msg="token by token")
    np.testing.assert_array_equal(in_pieces(model, first, 3, 9, 2), full, err_msg="uneven chunks")
    one, two = mixed(model, first, second)
    np.testing.assert_array_equal(one, full, err_msg="mixed batches and a fork")
    assert families.distance(two, eager[1]) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", BF16)
def test_bf16_is_no_farther_than_eager_bf16(home: Path, name: str) -> None:
    """Root-mean-square distances to eager f32: ours in bf16 against PyTorch's own bf16."""
    import torch
    from transformers import AutoModelForCausalLM

    model, directory = compiled(home, name, "bf16")
    ids = families.prompt(96)
    eager = families.eager_logits(directory, ids)
    narrow = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        theirs = narrow(torch.from_numpy(ids).long()).logits.float().numpy()
    ours = np.stack([whole(model, row.astype(np.int32)) for row in ids])
    np.testing.assert_array_equal(in_pieces(model, ids[0].astype(np.int32), 7), ours[0])

    def rms(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean((x - eager) ** 2)))

    assert rms(ours) <= rms(theirs)
