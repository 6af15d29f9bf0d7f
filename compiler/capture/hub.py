"""Where a model lies: a directory as it is, a hub id through the hub's own cache and client.

In: what the user named. Out: a directory. Downloads happen only for names of the form `owner/model` that are
no directory here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tilewright.ir.errors import RefusedError

#: what a compile needs of a repository: no pickled weights, no code
FILES = ("*.json", "*.safetensors", "tokenizer*", "*.jinja")
HINT = "pass a folder with config.json and *.safetensors, or a hub id: owner/model"
#: endings of files and artifacts: no name with one of these is asked of the hub
FILES_OF_MODELS = (".tw", ".gguf", ".safetensors", ".bin", ".pt", ".pth", ".onnx", ".json", ".toml", ".ir")
_HUB_ID = re.compile(r"^[\w.-]{1,96}/[\w.-]{1,96}(@[\w./-]{1,96})?$")


def resolve_model(name: str | Path) -> Path:
    """The model's directory. `owner/model` or `owner/model@revision` is taken from the hub's cache, else
    downloaded (not with HF_HUB_OFFLINE=1). RefusedError if there is no such directory and the hub cannot give
    it."""
    path = Path(name)
    text = str(name)
    if not text:
        raise RefusedError("the model's path is empty", "model", HINT)
    if (
        path.exists()
        or not _HUB_ID.match(text)
        or text.startswith((".", "/"))
        or path.suffix in FILES_OF_MODELS
    ):
        return path
    repo, _, revision = text.partition("@")
    from huggingface_hub import snapshot_download

    options = {"revision": revision or None, "allow_patterns": list(FILES)}
    try:
        return Path(snapshot_download(repo, local_files_only=True, **options))
    except Exception as cached:  # the client's own errors have no common base
        if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
            raise _refused(
                text, f"not in the cache, and HF_HUB_OFFLINE is set ({type(cached).__name__})"
            ) from cached
    try:
        return Path(snapshot_download(repo, **options))
    except Exception as why:
        raise _refused(
            text, f"the hub request failed: {type(why).__name__}: {str(why).splitlines()[0][:200]}"
        ) from why


def _refused(name: str, why: str) -> RefusedError:
    hint = (
        "check the spelling and the network, log in with `hf auth login` for gated models, or pass a "
        "local directory"
    )
    return RefusedError(f"no checkpoint directory {name!r}, and {why}", "model", hint)
