"""The height of query blocks is an option of a compile, and results do not depend on it.

Plan, library and manifest have the same number.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.compiler import families
from tilewright.capture import capture_directory
from tilewright.ir.errors import RefusedError
from tilewright.passes.driver import Options, run_passes
from tilewright.recipe import resolve_recipe
from tilewright.runtime.model import Model

PROMPT = np.arange(3, 40)


def passes(rows: int) -> str:
    usual = resolve_recipe("f32").pipeline("decoder")
    return usual.replace("incrementalize{", f"incrementalize{{block={rows}, ")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.write_model(tmp_path_factory.mktemp("block") / "llama", "llama")


@pytest.fixture(scope="module")
def usual(llama: Path) -> np.ndarray:
    return np.asarray(tw.compile(llama, recipe="f32").load()(PROMPT))


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 4, 16])
def test_another_height_gives_the_same_bits(
    llama: Path, usual: np.ndarray, rows: int, tmp_path: Path
) -> None:
    compiled = tw.compile(llama, recipe="f32", passes=passes(rows))
    compiled.save(tmp_path / "m.tw")
    model = tw.load(tmp_path / "m.tw")
    assert isinstance(model, Model) and model.manifest.step is not None
    assert model.manifest.step.block == model.library.block == rows
    assert np.array_equal(np.asarray(model(PROMPT)), usual)
    with model.session(2) as s:  # a prompt in two parts beside another
        a, b = s.add(), s.add()
        s.step([(a, PROMPT[:5], None), (b, PROMPT[::-1][:9], None)])
        [last] = s.step([(a, PROMPT[5:], "last")])
    assert last is not None and np.array_equal(last[-1], usual[-1])


def test_the_passes_check_at_another_height(llama: Path) -> None:
    """Interpreted before and after each pass, lowering too, on inputs with blocks of this height."""
    module = capture_directory(llama)
    record = run_passes(module, f"{passes(4)}, lower", Options(verify_each=True, check_each=True))
    assert dict(record.program.symbols)["Q"].hi == 4


@pytest.mark.parametrize("rows", [0, 65])
def test_a_height_out_of_range_is_refused(llama: Path, rows: int) -> None:
    with pytest.raises(RefusedError) as caught:
        run_passes(capture_directory(llama), passes(rows))
    assert str(caught.value) == f"incrementalize: refused: query blocks of {rows} rows\n  help: use 1 to 64"
