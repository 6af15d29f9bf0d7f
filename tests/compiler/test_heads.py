"""Encoders and vision models from their folders: compiled, saved, run without PyTorch, equal to transformers.

One classifier of texts runs every day, the other families take turns.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

import tilewright as tw
from tests.compiler import head_models as made
from tests.four_values import assert_agree, four_values
from tilewright.cli.app import run
from tilewright.ir.errors import RefusedError, UnsupportedError
from tilewright.ir.graph.core import Module
from tilewright.runtime.cpu import available_levels
from tilewright.runtime.errors import ArtifactError, SessionError
from tilewright.runtime.manifest import seal
from tilewright.runtime.model import Model

TEXTS = ["the cat sat on the mat", "Anna works at Acme Bank in Paris and lives in London", "dogs"]
MASKED = ["the [MASK] sat on the mat", "bob lives in [MASK] and works at [MASK]"]
TOLERANCE = 2e-5


def compiled(folder: Path, **options: Any) -> Model:
    """Compiled in f32, saved and loaded again."""
    tw.compile(folder, **{"recipe": "f32", **options}).save(folder / "model.tw")
    return tw.load(folder / "model.tw")


def close(got: Any, want: Any) -> None:
    """Equal, floats nearly."""
    if isinstance(want, dict):
        assert set(got) == set(want)
        for key in want:
            close(got[key], want[key])
    elif isinstance(want, list | tuple):
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            close(g, w)
    elif isinstance(want, float | np.floating):
        assert abs(got - want) <= TOLERANCE * max(1.0, abs(want)), (got, want)
    else:
        assert got == want


# ------------------------------------------------------------------ every day
PREPARE = {"resize": None, "crop": [], "scale": 1.0, "mean": [], "std": []}
IMAGE = {"graph": "forward", "channels": 3, "height": 8, "width": 8, "prepare": None}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a classifier, with its artifact inside."""
    folder = made.text_model(tmp_path_factory.mktemp("bert"), "bert")
    compiled(folder)
    return folder


def test_a_classifier_equals_the_pipeline(bert: Path) -> None:
    model, pipeline = tw.load(bert / "model.tw"), hf.pipeline("text-classification", model=str(bert), top_k=2)
    assert model.task == "text-classification"
    close(model.run(TEXTS, top=2), pipeline(TEXTS))
    close(model.run(TEXTS[0], top=2), pipeline(TEXTS[:1])[0])
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    close(model.run(**pair, top=2), pipeline(pair))


def test_the_running_process_needs_no_pytorch(bert: Path) -> None:
    code = (
        "import sys; from tilewright.cli.app import run\n"
        f"code = run(['run', {str(bert / 'model.tw')!r}, '--text', 'the cat', '--json', '--top', '1'])\n"
        "assert not {'torch', 'transformers', 'PIL'} & set(sys.modules), sys.modules.keys()\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    [row] = found["answers"]
    assert found["task"] == "text-classification" and row["text"] == "the cat"
    assert row["answer"] == tw.load(bert / "model.tw").run("the cat", top=1)


def test_a_second_compile_traces_nothing(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And writes the same bytes."""
    monkeypatch.delattr("tilewright.capture.heads.capture_heads")
    tw.compile(bert, recipe="f32").save(tmp_path / "m.tw")
    for name in ("manifest.json", "weights.bin", "tokenizer.json"):
        assert (tmp_path / "m.tw" / name).read_bytes() == (bert / "model.tw" / name).read_bytes()


def test_wrong_inputs(bert: Path) -> None:
    model = tw.load(bert / "model.tw")
    long = "the " * 39
    for given, message in (
        ({}, "no input\n  help: this model does text-classification: it takes text"),
        ({"image": "a.png"}, "image is not an input of this model"),
        ({"text": []}, "text: expected a string or strings, got a list of 0"),
        ({"text": ["a", 1]}, "text: expected a string or strings"),
        ({"text": "a", "top": 0}, "top: expected at least 1, got 0"),
        ({"text": ["a", "b"], "text_pair": "c"}, "text_pair: expected one for each text, got 2 and 1"),
        ({"text": "\ud800"}, "is not UTF-8 text"),
        ({"text": long}, r"text 'the the .*' …: 41 tokens, the model takes 40\n  help: shorten it, or cut"),
    ):
        with pytest.raises(SessionError, match=message):
            model.run(**given)
    close(model.run(long, truncate=True), model.run("the " * 38))
    assert model.run("") and model.run(text=["a cat"] * 20) == [model.run("a cat")] * 20
    with pytest.raises(SessionError, match="this model does text-classification, and generates no text"):
        model.generate("a")


@pytest.mark.parametrize(
    ("damage", "given", "message"),
    [
        (lambda b: b["task"].update(labels=["one"]), {"text": "a"}, "1 labels for 3 logits"),
        (lambda b: b["task"].update(name="os.system"), {"text": "a"}, "the graph has no result 'vectors'"),
        (lambda b: b["task"]["text"].update(graph="other"), {"text": "a"}, "there is no graph 'other'"),
        (lambda b: b["task"].update(scores="eval"), {"text": "a"}, "scores: expected one of softmax"),
        (lambda b: b.pop("task"), {"text": "a"}, "field 'task' is missing"),
        (lambda b: b["files"].pop("tokenizer.json"), {"text": "a"}, "the artifact has no tokenizer"),
        (lambda b: b["task"].update(text=None, image=IMAGE), {"image": "a.png"}, "does not say how images"),
        (lambda b: b["task"].update(text=None, image={**IMAGE, "prepare": PREPARE}),
         {"image": np.zeros((8, 8, 3), np.uint8)}, "the graph of images takes input_ids, att"),
    ],
)  # fmt: skip
def test_edited_manifests(bert: Path, tmp_path: Path, damage: Any, given: Any, message: str) -> None:
    """Of an artifact that somebody edited and sealed again: an error, whatever it says."""
    path = shutil.copytree(bert / "model.tw", tmp_path / "m.tw")
    body = json.loads((path / "manifest.json").read_text())
    damage(body)
    (path / "manifest.json").write_text(json.dumps({**body, "seal": seal(body)}))
    with pytest.raises((ArtifactError, SessionError), match=message):
        tw.load(path).run(**given)


def test_the_command_line(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = str(bert / "model.tw")
    best = tw.load(artifact).run("a cat", top=1)[0]
    assert run(["run", artifact, "--text", "a cat", "--top", "1"]) == 0
    assert capsys.readouterr().out == f"  {best['score']:.4f}  {best['label']}\n"
    assert run(["run", artifact, "--text", "a cat", "--text", "b", "--top", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "a cat"
    assert run(["run", artifact, "--prompt", "a"]) == 2
    assert "this model does text-classification: pass --text or --image" in capsys.readouterr().err
    assert run(["run", artifact, "--image", "none.png"]) == 1
    assert "image is not an input of this model" in capsys.readouterr().err
    assert run(["eval", artifact, "--text", str(bert / "config.json")]) == 1
    assert "eval is for language models; this model does text-clas" in capsys.readouterr().err
    assert run(["bench", artifact, "--batch", "3", "--repeats", "1", "--json"]) == 0
    [speed] = json.loads(capsys.readouterr().out)["graphs"]
    assert (speed["graph"], speed["batch"], speed["tokens"]) == ("forward", 3, 40)
    assert speed["inputs_s"] == pytest.approx(3 / speed["call_s"], rel=0.01)
    assert run(["inspect", artifact]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"3 labels +bad, good, mixed", shown) and re.search(r"text +at most 40 tokens", shown)
    assert run(["inspect", str(bert)]) == 0
    assert "text-classification" in capsys.readouterr().out


def test_threads_share_a_model(bert: Path) -> None:
    model = tw.load(bert / "model.tw")
    want = [model.run(t) for t in TEXTS]

    def ask(n: int) -> bool:
        cut = model.run("the " * 60, truncate=True)
        return bool(cut) and model.run(TEXTS[n % 3]) == want[n % 3]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(24)))


@pytest.mark.parametrize("name", ["NoneForMaskedLM", "ViTForImageClassification", "os.ForMaskedLM"])
def test_classes_that_are_not_the_config_s(tmp_path: Path, name: str) -> None:
    made.config(hf.BertConfig, architectures=[name]).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=f"{name} is not a model of bert in transformers"):
        tw.compile(tmp_path)


# ------------------------------------------------------------------ folders and options, in turns
@pytest.mark.slow
def test_weights_that_are_missing(tmp_path: Path) -> None:
    """A head that was never trained is not made up."""
    made.saved(tmp_path, hf.BertModel(made.config(hf.BertConfig)))
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedError, match=r"no tensor for the parameter 'classifier.weight' \[2, 32\]"):
        tw.compile(tmp_path)


@pytest.mark.slow
def test_a_folder_without_preprocessing(tmp_path: Path) -> None:
    """Takes arrays; a preparation to another size is refused."""
    folder = made.image_model(tmp_path, "vit")
    (folder / "preprocessor_config.json").unlink()
    model, pixels = compiled(folder), image_inputs(None)["pixel_values"]
    with pytest.raises(
        SessionError, match="does not say how images are prepared\n  help: compile from a fol"
    ):
        model.run(image=pixels)
    with torch.no_grad():
        want = hf.ViTForImageClassification.from_pretrained(folder)(torch.from_numpy(pixels)).logits
    np.testing.assert_allclose(model(pixels)["logits"], want, rtol=0, atol=1e-5)
    other = {"image_processor_type": "ViTImageProcessor", "size": 48}
    (folder / "preprocessor_config.json").write_text(json.dumps(other))
    with pytest.raises(RefusedError, match="it makes images of 48 x 48, the model takes 32 x 32"):
        tw.compile(folder)


@pytest.mark.slow
def test_recipes(tmp_path: Path) -> None:
    """Fewer bits change probabilities little; weights are solved on a text; caches are not for encoders."""
    folder = made.text_model(tmp_path, "bert")
    want = {x["label"]: x["score"] for x in compiled(folder).run(TEXTS[1])}
    text = tmp_path / "text.txt"
    text.write_text(" ".join(TEXTS) * 20)
    solved = {"weights": "gptq(int4(group=32))", "calibrate": text, "samples": 4, "recipe": "bf16"}
    for options in ({"recipe": "bf16"}, {"recipe": "w8a8"}, solved):
        got = tw.compile(folder, **options).load().run(TEXTS[1])
        assert all(abs(x["score"] - want[x["label"]]) < 0.1 for x in got), options
    for name, value in (("kv", "int8(token)"), ("cache", "window(recent=8)"), ("share_prefixes", True)):
        with pytest.raises(RefusedError, match=f"{name} is for language models: this one keeps no cache"):
            tw.compile(folder, **{name: value})


@pytest.mark.slow
def test_a_trained_model(tmp_path: Path, repo: Path) -> None:
    """Of 400 digits as many are recognised as by PyTorch, and nearly as many when tokens are cut."""
    folder = repo / "examples" / "models" / "tiny-vit"
    held = np.load(folder / "test.npz")
    pixels = [np.round(x.astype(np.float32) * 255 / 16).astype(np.uint8) for x in held["images"]]
    for options, least in (({"recipe": "w8a8"}, 0.97), ({"recipe": "f32", "tokens": "evit(keep=0.7)"}, 0.96)):
        tw.compile(folder, **options).save(tmp_path / "m.tw")
        found = tw.load(tmp_path / "m.tw").run(image=pixels, top=1)
        right = [x[0]["label"] == str(n) for x, n in zip(found, held["labels"], strict=True)]
        assert np.mean(right) >= least, options


# ------------------------------------------------------------------ families, in turns
def pipeline_of(task: str, folder: Path, **options: Any) -> Any:
    return hf.pipeline(task, model=str(folder), **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in made.TEXTS if n != "bert"])
def test_texts(tmp_path: Path, name: str) -> None:
    folder = made.text_model(tmp_path, name)
    model = compiled(folder)
    if model.task == "text-classification":
        close(model.run(TEXTS), pipeline_of(model.task, folder, top_k=5)(TEXTS))
    elif model.task == "fill-mask":
        close(model.run(MASKED, top=3), [pipeline_of(model.task, folder, top_k=3)(t) for t in MASKED])
    elif model.task == "token-classification":
        close(model.run(TEXTS), pipeline_of(model.task, folder, aggregation_strategy="simple")(TEXTS))
    elif model.task == "feature-extraction":
        for text, found in zip(TEXTS, model.run(TEXTS), strict=True):
            np.testing.assert_allclose(found, hidden_states(folder, text), rtol=0, atol=2e-5)
    else:
        answers(model, folder)


def hidden_states(folder: Path, text: str) -> Any:
    """Of the class that the config names; a pipeline loads another one of T5's encoder."""
    named = json.loads((folder / "config.json").read_text())["architectures"][0]
    eager = getattr(hf, named).from_pretrained(folder)
    given = {k: torch.from_numpy(v) for k, v in text_inputs(eager, [text]).items()}
    with torch.no_grad():
        return eager(**given).last_hidden_state[0].numpy()


def answers(model: Model, folder: Path) -> None:
    """The best spans are those with the largest product of probabilities within the passage."""
    question, passage = "who sat", "the cat sat on the mat , anna ran under the house"
    given = made.tokenizer()(question, passage, return_tensors="pt", return_offsets_mapping=True)
    places, parts = given.pop("offset_mapping")[0], given.sequence_ids(0)
    with torch.no_grad():
        out = hf.BertForQuestionAnswering.from_pretrained(folder)(**given)
    inside = torch.tensor([p == 1 for p in parts])
    first, last = (
        x[0].masked_fill(~inside, -torch.inf).softmax(-1) for x in (out.start_logits, out.end_logits)
    )
    found = [
        (float(first[a] * last[b]), int(places[a, 0]), int(places[b, 1]))
        for a in range(len(parts)) for b in range(a, min(len(parts), a + 15)) if inside[a] and inside[b]
    ]  # fmt: skip
    want = [
        {"score": p, "start": a, "end": b, "answer": passage[a:b]} for p, a, b in sorted(found, reverse=True)
    ]
    close(model.run(question, text_pair=passage, top=3), want[:3])


@pytest.mark.slow
@pytest.mark.parametrize("name", made.EMBEDDERS)
def test_sentence_embedders(tmp_path: Path, name: str) -> None:
    folder = made.embedder(tmp_path, name)
    model = compiled(folder)
    given = made.tokenizer()(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        hidden = hf.MPNetModel.from_pretrained(folder)(**given).last_hidden_state
    keep = given["attention_mask"][:, :, None].bool()
    want = {
        "mean": (hidden * keep).sum(1) / keep.sum(1),
        "cls": hidden[:, 0],
        "max": hidden.masked_fill(~keep, -torch.inf).amax(1),
    }[name]
    want = want if name == "max" else torch.nn.functional.normalize(want, dim=-1)
    np.testing.assert_allclose(np.stack(model.run(TEXTS)), want.numpy(), rtol=0, atol=1e-5)
    entry = model.manifest.task
    assert entry is not None and entry.text is not None
    assert (entry.pooling, entry.normalized, entry.text.longest) == (name, name != "max", 24)


def pictures() -> list[Any]:
    return [made.picture(60, 47), made.picture(41, 83), made.picture(20, 20)]


@pytest.mark.slow
@pytest.mark.parametrize("name", made.IMAGES)
def test_images(tmp_path: Path, name: str) -> None:
    folder = made.image_model(tmp_path, name)
    model = compiled(folder)
    if model.task == "image-classification":
        close(model.run(image=pictures()), pipeline_of(model.task, folder)(pictures()))
    else:
        found = [x.tolist() for x in model.run(image=pictures())]
        close(found, [x[0] for x in pipeline_of(model.task, folder)(pictures())])


@pytest.mark.slow
def test_texts_against_images(tmp_path: Path) -> None:
    folder = made.clip(tmp_path)
    model = compiled(folder)
    pipeline = pipeline_of("zero-shot-image-classification", folder)
    want = pipeline(pictures(), candidate_labels=TEXTS, hypothesis_template="{}")
    close(model.run(TEXTS, image=pictures()), want)
    close(model.run(TEXTS, image=pictures()[0], top=1), want[0][:1])
    alone = np.stack(model.run(image=pictures()))
    assert alone.shape == (3, 16) and np.allclose(np.linalg.norm(alone, axis=1), 1)
    assert model.run("a dog").shape == (16,)
    rebuilt = tw.load(folder / "model.tw", rebuild=True)
    close(rebuilt.run(TEXTS, image=pictures()), want)


# ------------------------------------------------------------------ four values
def text_inputs(model: Any, texts: Sequence[str] = TEXTS) -> dict[str, Any]:
    given = made.tokenizer()(list(texts), padding=True, return_tensors="np")
    typed = getattr(model.config, "type_vocab_size", 0) > 1
    return {k: v for k, v in given.items() if typed or k != "token_type_ids"}


def image_inputs(model: Any) -> dict[str, Any]:
    return {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "name", "inputs"),
    [
        (made.text_model, "bert", text_inputs),
        (made.text_model, "roberta", text_inputs),
        (made.text_model, "deberta", text_inputs),
        (made.image_model, "vit", image_inputs),
        (made.image_model, "convnext", image_inputs),
    ],
)  # fmt: skip
def test_four_values(
    tmp_path: Path, make: Callable[..., Path], name: str, inputs: Callable[..., dict[str, Any]]
) -> None:
    """Eager, interpreted graph, interpreted tiles, compiled."""
    folder = make(tmp_path, name)
    ready = tw.compile(folder, recipe="f32")
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    eager = getattr(hf, architecture).from_pretrained(folder)
    given = inputs(eager)
    with torch.no_grad():
        want = eager(**{k: torch.from_numpy(v) for k, v in given.items()}).logits.numpy()
    graph = [s.ir for s in ready.stages if isinstance(s.ir, Module)][-1]
    level, eagerly = available_levels()[0], {"logits": want}
    values = four_values(graph, ready.program, "forward", given, ready.store, level, eagerly)
    assert_agree(values, 1e-4)
