"""Running rendered Triton source where there is no GPU: `TRITON_INTERPRET=1`, torch tensors on the CPU.

In: a kernel, NumPy arrays of stored bits, symbols. Out: the arrays, written in place. Also compiles ahead of
time to a cubin, which needs no GPU either.
"""

from __future__ import annotations

import hashlib
import json
import linecache
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.backends.triton.render import function_name, grid, render_kernel
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.numbers import bf16_bits, bits_to_bf16
from tilewright.ir.tile.core import Buffer, Kernel

_LOADED: dict[str, ModuleType] = {}
_POOL: list[ProcessPoolExecutor] = []


def run_kernel(kernel: Kernel, arrays: Mapping[str, NDArray[Any]], symbols: Mapping[str, int]) -> None:
    """Run every instance on Triton's interpreter. `arrays`: one per parameter, stored bits, written in place.

    It runs in a process of its own: `triton.language` is interpreted only if TRITON_INTERPRET was set when it
    was first imported, and then nothing else in that process can compile for a GPU."""
    count = int(np.prod(grid(kernel, dict(symbols))))
    launch = Launch(
        render_kernel(kernel, symbols), function_name(kernel), count,
        tuple(symbols[s] for s in kernel.symbols),
        tuple((b.name, _kind(b)) for b in kernel.params), kernel.written(),
    )  # fmt: skip
    given = {n: np.ascontiguousarray(a) for n, a in arrays.items()}
    for name, raw in _pool().submit(_run, launch, given).result().items():
        arrays[name].reshape(-1).view(np.uint8)[:] = raw


@dataclass(frozen=True)
class Launch:
    """What the worker process needs, as data without encodings: those of a user's file exist only in this
    process."""

    source: str
    function: str
    instances: int
    symbols: tuple[int, ...]
    params: tuple[tuple[str, str], ...]
    written: tuple[str, ...]


def _pool() -> ProcessPoolExecutor:
    if not _POOL:
        _POOL.append(
            ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_interpret)
        )
    return _POOL[0]


def _interpret() -> None:
    """Runs in the worker, before Triton is imported. Triton's interpreter truncates f32 to bf16 and flushes
    bf16 denormals, where hardware rounds and keeps them; this makes it do what hardware does."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    np.seterr(all="ignore")
    convert = interpreter._convert_float

    def rounded(data: NDArray[Any], source: Any, to: Any, mode: Any) -> NDArray[Any]:
        if (source.name, to.name) == ("fp32", "bf16"):
            return bf16_bits(data.view(np.float32))
        if (source.name, to.name) == ("bf16", "fp32"):
            return bits_to_bf16(data.view(np.uint16)).view(np.uint32)
        return np.asarray(convert(data, source, to, mode))

    interpreter._convert_float = rounded


def _run(launch: Launch, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.uint8]]:
    """Runs in the worker: the bytes of every written parameter, by name."""
    import torch

    kinds = {"bytes": torch.uint8, **{k: getattr(torch, v) for k, v in _TORCH.items()}}
    # an empty buffer needs an address too: eight bytes that every mask excludes
    raw = {
        n: torch.from_numpy(np.resize(a.reshape(-1).view(np.uint8), a.nbytes or 8)) for n, a in arrays.items()
    }
    tensors = {n: raw[n].view(kinds[kind]) for n, kind in launch.params}
    if launch.instances:
        getattr(_load(launch.source), launch.function)[(launch.instances,)](
            *[tensors[n] for n, _ in launch.params], *launch.symbols
        )
    return {n: tensors[n].view(torch.uint8).numpy()[: arrays[n].nbytes] for n in launch.written}


#: torch's names of the element types
_TORCH = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i8": "int8", "u8": "uint8",
    "i16": "int16",
    "u16": "uint16", "i32": "int32", "u32": "uint32", "i64": "int64", "bool": "bool",
}  # fmt: skip


def _kind(buffer: Buffer) -> str:
    """`bytes` for packed buffers, else the dtype."""
    return "bytes" if buffer.record is not None or buffer.encoding is not None else buffer.dtype


def _load(text: str) -> ModuleType:
    """The module of a kernel's source. Triton reads it back from `linecache`, so that no file has to be
    written."""
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    if key not in _LOADED:
        file = f"<tilewright-triton-{key}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        module = ModuleType(f"tilewright_triton_{key}")
        sys.modules[module.__name__] = module
        exec(compile(text, file, "exec"), module.__dict__)
        _LOADED[key] = module
    return _LOADED[key]


_AOT = """import importlib.util, json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
path, name, arch, signature, out = sys.argv[1:]
spec = importlib.util.spec_from_file_location("kernel", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
source = ASTSource(fn=getattr(module, name), signature=json.loads(signature), constexprs={})
built = triton.compile(source, target=GPUTarget("cuda", int(arch), 32), options={"enable_fp_fusion": True})
open(out, "wb").write(built.asm["cubin"])
"""


def compile_cubin(kernel: Kernel, arch: int = 90, symbols: Mapping[str, int] | None = None) -> bytes:
    """The kernel as a cubin for one architecture (90: Hopper), built ahead of time without a GPU, in a
    process of its own, because the interpreter patches `triton.language`. Raises UnsupportedError with the
    compiler's last lines."""
    signature = {f"p_{b.name}": f"*{_pointer(b)}" for b in kernel.params} | dict.fromkeys(
        kernel.symbols, "i32"
    )
    with tempfile.TemporaryDirectory(prefix="tilewright-triton-") as folder:
        path, out = Path(folder) / "kernel.py", Path(folder) / "kernel.cubin"
        path.write_text(render_kernel(kernel, symbols), "utf-8")
        env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        args = [str(path), function_name(kernel), str(arch), json.dumps(signature), str(out)]
        done = subprocess.run(
            [sys.executable, "-c", _AOT, *args], env=env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-6:])
            raise UnsupportedError(
                f"Triton does not compile this for sm_{arch}:\n{last}", f"kernel @{kernel.name}"
            )
        return out.read_bytes()


_POINTERS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "f64": "fp64", "bool": "i1"}


def _pointer(buffer: Buffer) -> str:
    kind = _kind(buffer)
    return "u8" if kind == "bytes" else _POINTERS.get(kind, kind)
