"""The stand-in model of the runtime's tests, as an artifact."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime import stub


@pytest.fixture(scope="session")
def stub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stub")


@pytest.fixture(scope="session")
def stub_path(stub_cache: Path) -> Path:
    return stub.write_stub(stub_cache / "stub.tw", stub_cache)
