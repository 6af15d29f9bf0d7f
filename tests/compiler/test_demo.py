"""The demo's questions: reproducible, each fact at its exact distance from the question; its checkpoint."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Tokenizer

from tilewright.ir.weights.safetensors import SafeTensors

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "models" / "small-llama"


@pytest.fixture(scope="module")
def recall() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recall", ROOT / "examples" / "recall.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("distance", "others"), [(128, 0), (128, 31), (1024, 31), (3500, 31)])
def test_questions(recall: ModuleType, distance: int, others: int) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    filler = encode((ROOT / "examples" / "heldout.txt").read_text("utf-8"))
    prompt, answer = recall.question(encode, filler, distance, others, random.Random(7))
    assert (prompt, answer) == recall.question(encode, filler, distance, others, random.Random(7))
    text = tokenizer.decode(prompt)
    word = text.rpartition("what is the code of ")[2].partition("?")[0]
    fact, asked = encode(recall.FACT.format(word)) + answer, encode(recall.QUESTION.format(word))
    at = [n for n in range(len(prompt)) if prompt[n : n + len(fact)] == fact]
    assert at == [16] and prompt[-len(asked) :] == asked
    assert len(prompt) - len(asked) - at[0] == distance
    assert text.count("The code of") > others // 8 and text.count(tokenizer.decode(answer)) == 1


def test_the_checkpoint_is_whole() -> None:
    """Both files hold what the index says, every tensor in bf16."""
    index = json.loads((MODEL / "model.safetensors.index.json").read_text())
    files = {name: SafeTensors(MODEL / name) for name in set(index["weight_map"].values())}
    kinds = {files[file].raw(key)[1] for key, file in index["weight_map"].items()}
    assert len(files) == 2 and kinds == {"bf16"}
    assert (
        sum(files[f].raw(k)[0].nbytes for k, f in index["weight_map"].items())
        == index["metadata"]["total_size"]
    )
