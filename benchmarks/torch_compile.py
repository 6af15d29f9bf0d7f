"""`torch.compile` with Tilewright beside Inductor and eager PyTorch: `benchmarks/torch_compile.py`.

Models of real sizes with random weights, f32 unless `--dtype bfloat16`. All variants run in turn in one
process; a ratio is the median over rounds of eager's time divided by the variant's in the same round (above
1: faster than eager). `first call` is the seconds of the call that compiles. `--overhead` measures one call
of ten small inputs. `--backends tilewright,openvino` compares with OpenVINO, in the environment of
`make peers`: there, `first call` is its conversion and compile.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Run = Callable[[], object]


def bert(batch: int) -> tuple[Any, dict[str, Any]]:
    import transformers as hf

    ids = torch.randint(0, 30000, (batch, 128))
    return hf.BertModel(hf.BertConfig()), {"input_ids": ids}


def vit(batch: int) -> tuple[Any, dict[str, Any]]:
    import transformers as hf

    return hf.ViTModel(hf.ViTConfig()), {"pixel_values": torch.randn(batch, 3, 224, 224)}


def resnet(batch: int) -> tuple[Any, dict[str, Any]]:
    import transformers as hf

    return hf.ResNetModel(hf.ResNetConfig()), {"pixel_values": torch.randn(batch, 3, 224, 224)}


def mobilenet(batch: int) -> tuple[Any, dict[str, Any]]:
    import transformers as hf

    return hf.MobileNetV2Model(hf.MobileNetV2Config()), {"pixel_values": torch.randn(batch, 3, 224, 224)}


def swin(batch: int) -> tuple[Any, dict[str, Any]]:
    import transformers as hf

    return hf.SwinModel(hf.SwinConfig()), {"pixel_values": torch.randn(batch, 3, 224, 224)}


MODELS = {"bert": bert, "vit": vit, "resnet": resnet, "mobilenet": mobilenet, "swin": swin}


def seconds(run: Run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def compare(name: str, batch: int, rounds: int, dtype: torch.dtype, backends: list[str]) -> None:
    """Print one line for each backend."""
    torch.manual_seed(0)
    model, given = MODELS[name](batch)
    model = model.eval().to(dtype)
    given = {k: x.to(dtype) if x.is_floating_point() else x for k, x in given.items()}
    runs: dict[str, Run] = {"eager": lambda: model(**given)}
    first: dict[str, float] = {}
    for backend in backends:
        began = time.perf_counter()
        runs[backend] = (openvino if backend == "openvino" else dynamo)(model, given, backend)
        runs[backend]()
        first[backend] = time.perf_counter() - began
    runs["eager"]()
    times: dict[str, list[float]] = {k: [] for k in runs}
    for _ in range(rounds):
        for k, run in runs.items():
            times[k].append(seconds(run))
    eager = statistics.median(times["eager"])
    print(f"{name} batch {batch}: eager {eager * 1e3:.1f} ms")
    for backend in backends:
        ratio = statistics.median(e / t for e, t in zip(times["eager"], times[backend], strict=True))
        print(f"  {backend:12} {ratio:5.2f} x eager   first call {first[backend]:6.1f} s", flush=True)


def dynamo(model: Any, given: dict[str, Any], backend: str) -> Run:
    compiled = torch.compile(model, backend=backend)
    return lambda: compiled(**given)


def openvino(model: Any, given: dict[str, Any], _: str) -> Run:
    """The model converted by OpenVINO, with as many threads as PyTorch uses and in the model's own type."""
    import openvino as ov

    core = ov.Core()
    core.set_property(
        "CPU",
        {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if model.dtype == torch.bfloat16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        },
    )

    class One(torch.nn.Module):
        """One tensor in, one out. Weights are f32; the hint says what it computes in."""

        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(model).float()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(**{name: x}, return_dict=False)[0]

    ((name, x),) = ((k, x.float() if x.is_floating_point() else x) for k, x in given.items())
    converted = ov.convert_model(torch.export.export(One().eval(), (x,)))
    request = core.compile_model(converted, "CPU").create_infer_request()
    array = x.numpy()
    return lambda: request.infer([array], share_inputs=True, share_outputs=True)


def overhead() -> None:
    """What a call of one part costs beyond its kernels: the least of many batches of calls."""
    from tilewright.dynamo.importing import Known
    from tilewright.dynamo.options import parse_options
    from tilewright.dynamo.part import Part

    def total(*xs: torch.Tensor) -> torch.Tensor:
        return sum(xs[1:], start=xs[0])

    inputs = [torch.randn(4) for _ in range(10)]
    graphs: list[Any] = []

    def keep(gm: Any, fakes: Any) -> Any:
        graphs.append(gm)
        return gm

    from torch._dynamo.backends.common import aot_autograd

    with torch.no_grad():
        torch.compile(total, backend=aot_autograd(fw_compiler=keep))(*inputs)
        known: dict[str, Known] = {}
        part = Part(graphs[0], known, parse_options())
        whole = min(_each(lambda: part(*inputs)) for _ in range(50))
        native = min(_each(part.native_call(inputs)) for _ in range(50))
        eager = min(_each(lambda: total(*inputs)) for _ in range(50))
    print(f"ten inputs: {(whole - native) * 1e6:.1f} us beyond the kernels' {native * 1e6:.1f} us")
    print(f"the same in eager PyTorch: {eager * 1e6:.1f} us")


def _each(run: Run, count: int = 500) -> float:
    return seconds(lambda: [run() for _ in range(count)]) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="names, comma-separated")
    parser.add_argument("--backends", default="tilewright,inductor")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--overhead", action="store_true", help="measure a call's overhead instead")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.overhead:
        overhead()
        return
    with torch.no_grad():
        for name in args.models.split(","):
            torch._dynamo.reset()
            compare(name, args.batch, args.rounds, getattr(torch, args.dtype), args.backends.split(","))


if __name__ == "__main__":
    main()
