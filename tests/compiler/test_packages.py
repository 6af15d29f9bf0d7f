"""Supported package versions: stated once, checked at import and by `doctor`, with the install command."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tilewright import packages
from tilewright.cli.app import error_block
from tilewright.packages import PACKAGES, PackageError, problem, require
from tilewright.tools import doctor

INSTALL = "pip install 'tilewright[compile]' (in a checkout: pip install -c constraints.txt '.[compile]')"


def test_the_ranges_are_those_of_the_package(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text("utf-8"))["project"]
    stated = {"": project["dependencies"], **project["optional-dependencies"]}
    known = {
        extra: sorted(n + p.range for n, p in PACKAGES.items() if p.extra == extra)
        for extra in ("", "compile", "vision", "triton")
    }
    assert {extra: sorted(stated[extra]) for extra in known} == known


@pytest.mark.parametrize(
    ("version", "fault"),
    [("5.6.2", "too old"), ("4.57.6", "too old"), ("6.0.0", "too new"), ("6.1.0.dev0", "too new"),
     ("5.7.0", None), ("5.7", None), ("5.23.0", None), ("5.100.0+local", None)],
)  # fmt: skip
def test_versions_outside_the_range(version: str, fault: str | None) -> None:
    found = problem("transformers", version)
    if fault is None:
        assert found is None
        return
    assert str(found) == (
        f"transformers {version} is {fault}: this version of Tilewright works with transformers>=5.7,<6\n"
        "  help: pip install 'transformers>=5.7,<6'"
    )


def test_what_is_missing_names_its_extra() -> None:
    assert str(problem("torch", None)) == f"torch is not installed (for compiling models)\n  help: {INSTALL}"
    assert (
        str(problem("click", None))
        == "click is not installed (for the command line)\n  help: pip install tilewright"
    )


def test_compiling_checks_before_it_imports(monkeypatch: pytest.MonkeyPatch, tiny_llama: Path) -> None:
    import tilewright as tw

    monkeypatch.setattr(packages, "version_of", lambda name: "5.5.4" if name == "transformers" else "99")
    with pytest.raises(PackageError, match=r"^transformers 5\.5\.4 is too old: "):
        tw.compile(tiny_llama)
    require("torch")
    assert error_block(problem("transformers", "5.5.4") or Exception()) == (
        "error: transformers 5.5.4 is too old: this version of Tilewright works with transformers>=5.7,<6\n"
        "  help: pip install 'transformers>=5.7,<6'"
    )


def test_doctor_names_versions_outside_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    real = packages.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: "5.5.4" if name == "transformers" else real(name))
    what = "transformers 5.5.4 is too old: this version of Tilewright works with transformers>=5.7,<6"
    assert {"what": what, "do": "pip install 'transformers>=5.7,<6'"} in doctor.collect()["problems"]
    assert set(doctor.collect()["packages"]) == set(PACKAGES)


#: runs a call where some packages are not there
WITHOUT = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
from importlib import metadata
real = metadata.version
def version(name):
    if name in {names!r}:
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
{code}
"""


def without(names: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    text = WITHOUT.format(names=set(names), code=code)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)


EXTRA = ("torch", "transformers", "accelerate", "safetensors", "networkx", "lark", "sympy")


@pytest.mark.parametrize(
    "words",
    [["compile", "{model}", "-o", "x.tw"], ["opt", "{kernel}"], ["exec", "{kernel}"],
    ["tune", "{model}", "-o", "x"],
     ["dump", "{model}"]],
    ids=lambda w: w[0],
)  # fmt: skip
def test_commands_of_the_compiler_in_the_base_install(repo: Path, tiny_llama: Path, words: list[str]) -> None:
    names = {"model": str(tiny_llama), "kernel": str(repo / "examples" / "tiles" / "softmax.tile")}
    call = [w.format(**names) for w in words]
    done = without(EXTRA, f"from tilewright.cli.app import main; main({call!r})")
    first, _, rest = done.stderr.partition(" is not installed (for ")
    assert done.returncode == 1 and first.removeprefix("error: ") in EXTRA
    assert rest.endswith(f")\n  help: {INSTALL}\n")


def test_python_names_the_extra_too() -> None:
    code = "import tilewright as tw\ntry: tw.compile\nexcept tw.PackageError as e: print(e)"
    done = without(EXTRA, code)
    assert done.stdout.endswith(f"\n  help: {INSTALL}\n") and " is not installed (for " in done.stdout, (
        done.stderr
    )


MODULE = """
import torch, tilewright as tw
x = torch.randn(3, 8)
module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
y = tw.compile(module, example_inputs=(x,), recipe="f32")(x)
assert torch.allclose(y, module(x), atol=1e-5)
try:
    tw.compile({model!r})
except tw.PackageError as e:
    print(e)
"""


def test_a_module_compiles_without_transformers(tiny_llama: Path) -> None:
    done = without(
        ("transformers", "accelerate", "safetensors", "huggingface_hub"), MODULE.format(model=str(tiny_llama))
    )
    assert (
        done.stdout
        == f"transformers is not installed (for compiling Hugging Face models)\n  help: {INSTALL}\n"
    ), done.stderr
