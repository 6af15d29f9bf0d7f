"""Mutated programs through `rebuild`: refused with a clean error, or clean under AddressSanitizer.

`python tests/trust/fuzz_rebuild.py WORK FIRST COUNT [SUMMARY.json]` makes three small artifacts in WORK, then
takes seeds FIRST to FIRST + COUNT: each forges an artifact whose program is damaged (hashes, seal, content id
and weights made to agree), opens it, does all that rebuilding does up to the build, builds what is accepted
with AddressSanitizer, and runs it (`asan_main.h`). Each seed runs in a forked process with limits. One line a
seed; a finding keeps its artifact in WORK/findings.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "ir"))

import mutate_program
import mutate_text
import sanitized
from forge import forge, program_file

from tilewright.artifact.rebuild import program_of
from tilewright.backends.cpp.levels import native_level
from tilewright.backends.cpp.target import Target
from tilewright.ir.errors import TilewrightError
from tilewright.runtime.artifact import open_artifact
from tilewright.runtime.errors import RuntimeFault

BASES = ("plain", "mixed", "llama")
#: CPU seconds that reading, proving and rendering one mutant may take, and its memory
CPU, MEMORY = 60, 4 << 30


def bases(work: Path) -> dict[str, Path]:
    """The artifacts that mutants are made of, written once."""
    if not all((work / f"{n}.tw").exists() for n in BASES):
        import bases as made

        made.write(work)
    return {n: work / f"{n}.tw" for n in BASES}


def mutant(text: str, seed: int) -> tuple[str, str]:
    rng = random.Random(seed)
    return mutate_text.mutate(text, rng) if seed % 8 == 7 else mutate_program.mutate(text, rng)


def level(name: str, seed: int) -> Target:
    """Baseline as a rule; every third mutant of the quick programs is built for this machine."""
    return native_level() if name != "llama" and seed // 3 % 3 == 2 else sanitized.BASELINE


def outcome(folder: Path, text: str, work: Path, target: Target) -> str:
    """`refused KIND`, `ran N sets`, or what is a finding: anything else."""
    try:
        forge(folder, text)
        program = program_of(open_artifact(folder))
        program.plans[0]
        ran = sanitized.run(program, folder, work / "objects", target=target)
    except (TilewrightError, RuntimeFault) as e:
        assert len(str(e)) < 6000, "an error of absurd length"
        return f"refused {type(e).__name__}" + (f" [{e.invariant}]" if getattr(e, "invariant", 0) else "")
    except IndexError:
        return "refused: no plan" if not program.plans else traceback.format_exc()
    except sanitized.TooLong:
        return "accepted, too long to build here"
    if ran.finding:
        return f"FINDING {ran.code}: {ran.said}"
    return "accepted, too slow or too large" if ran.code else f"ran {ran.sets} sets"


def _child(folder: Path, base: Path, seed: int, work: Path) -> None:
    """One seed, in a process of its own; what comes of it is its output."""
    shutil.copytree(base, folder, copy_function=os.link)
    text, what = mutant(program_file(folder).read_text(), seed)
    target = level(base.stem, seed)
    print(f"{seed} | {base.stem} {target.name} | {what} |", end=" ", flush=True)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU + 5))
    try:
        said = outcome(folder, text, work, target)
    except Exception:
        said = f"FINDING exception: {traceback.format_exc()[-1500:]}"
    print(said.replace("\n", "\n    "), flush=True)


def one(base: Path, seed: int, work: Path) -> str:
    """The line of one seed."""
    folder, out = work / f"m{seed}.tw", work / f"m{seed}.out"
    shutil.rmtree(folder, ignore_errors=True)
    pid = os.fork()
    if pid == 0:
        with out.open("w") as f:
            os.dup2(f.fileno(), 1)
            os.dup2(f.fileno(), 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            _child(folder, base, seed, work)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    text = out.read_text()
    if os.WIFSIGNALED(status):
        slow = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
        text += "too slow to prove or render\n" if slow else f"FINDING signal {os.WTERMSIG(status)}\n"
    elif os.WEXITSTATUS(status):
        text += f"FINDING exit {os.WEXITSTATUS(status)}\n"
    if "FINDING" in text:
        (work / "findings").mkdir(exist_ok=True)
        shutil.copytree(folder, work / "findings" / folder.name, dirs_exist_ok=True)
        (work / "findings" / f"{seed}.txt").write_text(text)
    shutil.rmtree(folder, ignore_errors=True)
    out.unlink()
    return text.strip()


def kind_of(line: str) -> str:
    """What to count a line as."""
    said = line.split("|", 3)[-1].strip() if line.count("|") >= 3 else line
    if "FINDING" in line:
        return "finding"
    if said.startswith("ran"):
        return "accepted and ran" if said != "ran 0 sets" else "accepted, refused by the runtime"
    return said.split("\n")[0]


def main(work: Path, first: int, count: int, summary: Path | None = None) -> Counter[str]:
    work.mkdir(parents=True, exist_ok=True)
    found: Counter[str] = Counter()
    made = bases(work)
    for base in made.values():  # what children then share: grammars, parsed types, objects of kernels
        for target in {level(base.stem, seed) for seed in range(9)}:
            sanitized.run(program_of(open_artifact(base)), base, work / "objects", target=target)
    for seed in range(first, first + count):
        line = one(made[BASES[seed % len(BASES)]], seed, work)
        print(line, flush=True)
        found[kind_of(line)] += 1
        if summary:
            summary.write_text(json.dumps(dict(found.most_common()), indent=1))
    return found


if __name__ == "__main__":
    total = main(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        Path(sys.argv[4]) if len(sys.argv) > 4 else None,
    )
    print(json.dumps(dict(total.most_common()), indent=1))
    sys.exit(1 if total["finding"] else 0)
