"""Names of models: directories stay, hub ids are looked for in the cache, and a failure says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilewright.capture.hub import resolve_model
from tilewright.ir.errors import RefusedError


def test_directory_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("owner/model") == Path("owner/model")
    assert resolve_model("./absent/model") == Path("absent/model")


def test_hub_id_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RefusedError) as caught:
        resolve_model("nobody/no-such-model")
    text = str(caught.value)
    assert text.startswith(
        "model: refused: no checkpoint directory 'nobody/no-such-model', and not in the cache, and "
        "HF_HUB_OFFLINE is set"
    )
    assert "help: check the spelling and the network" in text


def test_hub_id_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    calls: list[tuple[str, object]] = []

    def download(repo: str, **options: object) -> str:
        calls.append((repo, options.get("revision")))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("owner/model@v1") == tmp_path / "snapshot"
    assert calls == [("owner/model", "v1")]
