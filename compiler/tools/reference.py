"""The PyTorch model that a compiled one is compared with: logits of a Hugging Face model in float32.

In: a checkpoint directory. Out: a function from ids to logits. The only place where the CLI runs PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.packages import require
from tilewright.runtime.files import check_folder


def torch_logits(folder: str) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """Raises RefusedError or UnsupportedError for a folder that holds no such model with its weights."""
    require("torch", "transformers")
    from tilewright.capture.checkpoint import open_checkpoint
    from tilewright.capture.configs import load_config

    check_folder(folder)
    load_config(Path(folder))
    open_checkpoint(Path(folder))
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()

    def forward(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.inference_mode():
            out: NDArray[np.float32] = model(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
        return out

    return forward
