"""Every decoder family that transformers registers, tiny: `python tests/compiler/sweep_families.py [NAME …]`.

Each is captured, its masks and norms recognised, made a step function, lowered to kernels, and compared with
eager float32 on the interpreter. Prints one line per family (equal, refused with the reason, not buildable,
wrong) and the counts; exits with 1 if any is wrong.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parent))

import families  # noqa: E402
import torch  # noqa: E402

from tilewright.capture import capture_directory  # noqa: E402
from tilewright.ir.errors import TilewrightError  # noqa: E402
from tilewright.ir.weights.sources import WeightStore  # noqa: E402

TOLERANCE = 1e-4
#: sizes by every name under which configs ask for them
SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "n_embd": 64, "d_model": 64, "dim": 64, "intermediate_size": 96,
    "ffn_dim": 96,
    "n_inner": 96,
    "d_ff": 96, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "num_attention_heads": 4, "n_head": 4,
    "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
    "n_positions": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 48, "sliding_window": 7, "decoder_layers": 2,
    "encoder_layers": 1,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 96, "encoder_attention_heads": 4, "encoder_ffn_dim": 96,
    "q_lora_rank": 24,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "rotary_dim": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "shared_expert_intermediate_size": 48,
    "word_embed_proj_dim": 64,
}  # fmt: skip
#: seconds of processor time for one family
SECONDS = 40
#: parameters beyond this are not a tiny model
MOST = 3_000_000


def fields_of(model_type: str) -> dict[str, Any]:
    """The small sizes that this family's config has a name for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    known = set(getattr(kind, "__dataclass_fields__", {})) or set(kind().to_dict())
    mapped = getattr(kind, "attribute_map", {})
    fields = {k: v for k, v in SMALL.items() if k in known and k not in mapped}
    return families.FAMILIES[model_type][1] if model_type in families.FAMILIES else fields


class TooLong(Exception):
    """One family took longer than its share."""


def _alarm(*_: object) -> None:
    raise TooLong(f"not done within {SECONDS} s")


def outcome(model_type: str, home: Path) -> tuple[str, str]:
    """(what became of it, why); `too slow` where PyTorch's tracing did not end in time."""
    signal.signal(signal.SIGPROF, _alarm)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return compared(model_type, home)
    except TooLong as e:
        return "too slow", str(e)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def compared(model_type: str, home: Path) -> tuple[str, str]:
    """The same without a limit of time."""
    try:
        with torch.device("meta"):
            from transformers import AutoConfig, AutoModelForCausalLM

            config = AutoConfig.for_model(model_type, **fields_of(model_type))
            count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if count > MOST:
            return "not buildable", f"{count} parameters with small sizes"
        families.make_model(model_type, fields_of(model_type)).save_pretrained(home)
        ids = families.prompt(96)
        eager = families.eager_logits(home, ids)
    except TooLong:
        raise
    except Exception as e:  # a config of its own kind: nothing to compare
        return "not buildable", _first(e)
    try:
        module = capture_directory(home)
        attention = str(dict(module.meta)["attention"])
        moved = families.distance(families.graph_logits(causal(module), WeightStore(home), ids), eager)
    except TilewrightError as e:
        return "refused", _first(e)
    except TooLong:
        raise
    except Exception as e:
        return "crashed", f"{type(e).__name__}: {_first(e)}"
    return ("equal", attention) if moved <= TOLERANCE else ("wrong", f"{attention}: {moved:.1e}")


def causal(module: Any) -> Any:
    """The module with plain attention recognised, made a step function and lowered to kernels once (to see
    that it can be); as recognised."""
    from tilewright.passes.driver import run_passes
    from tilewright.pipeline import run_pipeline
    from tilewright.recipe import PRESETS

    run_pipeline(module, PRESETS["f32"])
    return run_passes(module, "canonicalize, recognise, canonicalize").ir


def _first(e: Exception) -> str:
    return (str(e).strip() or type(e).__name__).replace("\n", " ")[:200]


def main(names: list[str]) -> int:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as home:
        for name in names or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
            what, why = outcome(name, Path(home) / name)
            counts[what] += 1
            print(f"{name:28} {what:14} {why}", flush=True)
    print(", ".join(f"{n} {what}" for what, n in counts.most_common()))
    return 1 if counts["wrong"] or counts["crashed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
