"""Systems under test, each in its own process that keeps its model loaded, so that runs can be interleaved.

In: JSON lines on standard input, `{"task": "prefill"|"decode", "tokens": n, "context": c, "batch": b}`. Out:
one JSON line each, `{"seconds": s}` or `{"error": text}`. `Worker` is the asking side. Independent of
tables and shares.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
#: systems that live in an environment of their own, since they ask for other versions of transformers than
#: Tilewright does
APART = ("openvino", "llama.cpp")
INSTALL = {
    "torch": "run: make setup",
    "torch-compile": "run: make setup",
    "openvino": "run: make peers",
    "llama.cpp": (
        "run: make peers, and put llama-bench and llama-batched-bench (llama.cpp built with "
        "GGML_NATIVE=ON) on PATH"
    ),
}


#: seconds before each run, in which the threads of the run before stop spinning
SETTLE = 0.1


class WorkerError(RuntimeError):
    """A system that could not start or run; the message says why."""


def interpreter(kind: str) -> str:
    """The Python that runs a system: this one, or that of the environment that `make peers` makes ($TW_PEERS:
    another one)."""
    if kind not in APART:
        return sys.executable
    python = Path(os.environ.get("TW_PEERS") or ROOT / ".venv-peers") / "bin" / "python"
    if not python.exists():
        raise WorkerError(
            f"{kind} runs in an environment of its own, and {python.parent.parent} is not there; "
            f"{INSTALL[kind]}"
        )
    return str(python)


# ------------------------------------------------------------------ the asking side
class Worker:
    """One system. `ask` blocks until the run is done."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self.name = name
        command = [interpreter(arguments[0]), str(Path(__file__).resolve()), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer = self._answer()

    def ask(self, task: str, tokens: int, context: int = 0, batch: int = 1) -> float:
        """Seconds that the run took."""
        time.sleep(SETTLE)
        assert self.process.stdin is not None
        question = {"task": task, "tokens": tokens, "context": context, "batch": batch}
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer: dict[str, Any] = (
            json.loads(line) if line.startswith("{") else {"error": f"ended with {self.process.wait()}"}
        )
        if "error" in answer:
            raise WorkerError(str(answer["error"]))
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# ------------------------------------------------------------------ the answering side
class System(ABC):
    """A model in memory. Both methods give seconds."""

    @abstractmethod
    def prefill(self, tokens: int, batch: int) -> float: ...

    @abstractmethod
    def decode(self, tokens: int, context: int, batch: int) -> float: ...


class Tilewright(System):
    """A compiled artifact. A context is read once and cached; runs truncate back to it."""

    def __init__(self, artifact: str, threads: int) -> None:
        from tilewright.runtime.model import load

        self.model = load(artifact, threads=threads)
        self.cached: tuple[int, int, Any, list[int]] | None = None

    def prefill(self, tokens: int, batch: int) -> float:
        with self.model.session(batch) as session:
            work = [(session.add(), _ids(tokens, n), "last") for n in range(batch)]
            return _timed(lambda: session.step(work))

    def decode(self, tokens: int, context: int, batch: int) -> float:
        session, sequences = self._filled(context, batch)
        ids = _ids(tokens, 7)

        def run() -> None:
            for i in ids:
                session.step([(s, [int(i)], "last") for s in sequences])

        seconds = _timed(run)
        for s in sequences:
            session.truncate(s, context)
        return seconds

    def _filled(self, context: int, batch: int) -> tuple[Any, list[int]]:
        if self.cached is None or self.cached[:2] != (context, batch):
            if self.cached is not None:
                self.cached[2].close()
            session = self.model.session(batch)
            sequences = [session.add() for _ in range(batch)]
            session.step([(s, _ids(context, s), None) for s in sequences])
            session.step([(s, [1], "last") for s in sequences])  # first touch of the decode code
            for s in sequences:
                session.truncate(s, context)
            self.cached = (context, batch, session, sequences)
        return self.cached[2], self.cached[3]


class Torch(System):
    """transformers in bf16 or f32; eager with a growing cache, or compiled with a static one. Contexts are
    random."""

    def __init__(self, folder: str, threads: int, compiled: bool, width: str = "bf16") -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.torch, self.compiled = torch, compiled
        dtype = torch.float32 if width == "f32" else torch.bfloat16
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.step = torch.compile(self.model) if compiled else self.model

    def prefill(self, tokens: int, batch: int) -> float:
        cache, ids = self._cache(batch, 0, tokens), self._ids(batch, tokens)
        return _timed(lambda: self._run(ids, cache))

    def decode(self, tokens: int, context: int, batch: int) -> float:
        cache, ids = self._cache(batch, context, context + tokens + 2), self._ids(batch, 1)
        self._run(ids, cache)  # the static cache's first step may compile

        def run() -> None:
            nonlocal ids
            for _ in range(tokens):
                ids = self._run(ids, cache)

        return _timed(run)

    def _ids(self, batch: int, tokens: int) -> Any:
        return self.torch.randint(0, self.model.config.vocab_size, (batch, tokens))

    def _run(self, ids: Any, cache: Any) -> Any:
        with self.torch.inference_mode():
            return (
                self.step(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                .logits[:, -1:]
                .argmax(-1)
            )

    def _cache(self, batch: int, filled: int, length: int) -> Any:
        from transformers import DynamicCache, StaticCache

        config = self.model.config
        heads, size = config.num_key_value_heads, config.head_dim
        if self.compiled:
            cache: Any = StaticCache(config=config, max_cache_len=length)
            cache.early_initialization(batch, heads, size, self.model.dtype, self.torch.device("cpu"))
        else:
            cache = DynamicCache(config=config)
        for layer in range(config.num_hidden_layers if filled else 0):
            cache.update(
                *(self.torch.randn(batch, heads, filled, size, dtype=self.model.dtype) for _ in range(2)),
                layer,
            )
        return cache


class OpenVino(System):
    """A stateful model that `optimum` exported from the folder; `width`: bf16, int8 or int4."""

    def __init__(self, folder: str, threads: int, width: str) -> None:
        import openvino

        exported = Path(f"{folder}-openvino-{width}")
        if not (exported / "openvino_model.xml").exists():
            _export_openvino(folder, exported, width)
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(str(exported / "openvino_model.xml"), "CPU", options)
        self.names = {n for i in compiled.inputs for n in i.get_names()}
        self.request = compiled.create_infer_request()

    def prefill(self, tokens: int, batch: int) -> float:
        self.request.reset_state()
        return _timed(lambda: self._run(tokens, 0, batch))

    def decode(self, tokens: int, context: int, batch: int) -> float:
        self.request.reset_state()
        for start in range(0, context, 512):
            self._run(min(512, context - start), start, batch)

        def run() -> None:
            for i in range(tokens):
                self._run(1, context + i, batch)

        return _timed(run)

    def _run(self, tokens: int, past: int, batch: int) -> None:
        ids = np.stack([_ids(tokens, n) for n in range(batch)])
        feed = {
            "input_ids": ids, "attention_mask": np.ones((batch, past + tokens), np.int64),
            "position_ids": np.tile(np.arange(past, past + tokens), (batch, 1)),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }  # fmt: skip
        self.request.infer(
            {k: v for k, v in feed.items() if k in self.names}, share_inputs=True, share_outputs=True
        )


def _export_openvino(folder: str, exported: Path, width: str) -> None:
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    options: dict[str, dict[str, Any]] = {
        "int8": {"bits": 8},
        "int4": {"bits": 4, "sym": True, "group_size": 32, "ratio": 1.0},
    }
    quantize = OVWeightQuantizationConfig(**options[width]) if width in options else None
    model = OVModelForCausalLM.from_pretrained(
        folder, export=True, compile=False, load_in_8bit=False, quantization_config=quantize
    )
    model.save_pretrained(exported)


class LlamaCpp(System):
    """llama.cpp through its own benchmark programs, started for each run (the model stays in the page cache;
    their times leave loading out). `width`: BF16, Q8_0 or Q4_0."""

    def __init__(self, folder: str, threads: int, width: str) -> None:
        from gguf_export import write_gguf

        self.threads = threads
        self.file = write_gguf(Path(folder), Path(f"{folder}-{width}.gguf"), width)
        self._bench("-p", "16", "-n", "0")

    def prefill(self, tokens: int, batch: int) -> float:
        return tokens / self._bench("-p", str(tokens), "-n", "0", "-ub", str(tokens))

    def decode(self, tokens: int, context: int, batch: int) -> float:
        if batch == 1:
            return tokens / self._bench("-p", "0", "-n", str(tokens), "-d", str(context))
        most = str(batch * (context + tokens + 8))
        sizes = ("-npp", str(context), "-ntg", str(tokens), "-npl", str(batch), "-c", most)
        out = _output(
            "llama-batched-bench",
            "-m",
            str(self.file),
            "-t",
            str(self.threads),
            *sizes,
            "--output-format",
            "jsonl",
        )
        return float(json.loads(next(line for line in out.splitlines() if line.startswith("{")))["t_tg"])

    def _bench(self, *sizes: str) -> float:
        """Tokens per second."""
        out = _output(
            "llama-bench", "-m", str(self.file), "-t", str(self.threads), "-r", "1", "-o", "json", *sizes
        )
        return float(json.loads(out)[0]["avg_ts"])


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _ids(tokens: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(3, 32000, tokens)


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def make(kind: str, model: str, threads: int, width: str) -> System:
    """A system by its name."""
    if kind == "tilewright":
        return Tilewright(model, threads)
    if kind in ("torch", "torch-compile"):
        return Torch(model, threads, kind == "torch-compile", width)
    return OpenVino(model, threads, width) if kind == "openvino" else LlamaCpp(model, threads, width)


def answer(system: System, question: dict[str, Any]) -> float:
    tokens, batch = int(question["tokens"]), int(question["batch"])
    if question["task"] == "prefill":
        return system.prefill(tokens, batch)
    return system.decode(tokens, int(question["context"]), batch)


def main() -> None:
    kind, model, threads, width = sys.argv[1:5]
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries talk; the pipe is for answers
    try:
        began = time.perf_counter()
        system = make(kind, model, int(threads), width)
        print(json.dumps({"load_s": time.perf_counter() - began}), file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps({"seconds": answer(system, json.loads(line))}), file=out, flush=True)
    except (ImportError, FileNotFoundError) as e:
        print(
            json.dumps({"error": f"{type(e).__name__}: {e}; {INSTALL.get(kind, '')}"}), file=out, flush=True
        )
    except Exception as e:  # the asking side reports it
        print(json.dumps({"error": f"{type(e).__name__}: {str(e)[:500]}"}), file=out, flush=True)


if __name__ == "__main__":
    main()
