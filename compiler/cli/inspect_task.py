"""What `tilewright inspect` says of a task: labels, how texts and images become inputs.

In: the manifest's task. Out: rows of a table.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.runtime.task_entry import Preparation, TaskEntry


def about_task(task: TaskEntry) -> list[tuple[str, str]]:
    """What the model is for, and how its inputs are made."""
    rows = [("task", task.name)]
    if task.labels:
        rows.append((f"{len(task.labels)} labels", shortened(", ".join(task.labels))))
        rows.append(("scores", task.scores))
    if task.pooling:
        rows.append(("vector", f"{task.pooling} of tokens" + (", of length 1" if task.normalized else "")))
    if task.text is not None:
        rows.append(("text", f"at most {task.text.longest} tokens"))
    if task.image is not None:
        i = task.image
        rows.append(("image", f"{i.channels} x {i.height} x {i.width}, {prepared(i.prepare)}"))
    return rows


def shortened(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 2] + " …"


def prepared(how: Preparation | None) -> str:
    """The steps from pixels to numbers, in order."""
    if how is None:
        return "prepared by the caller: its folder has no preprocessor_config.json"
    steps = []
    if how.resize is not None:
        r = how.resize
        size = f"{r.height} x {r.width}" if r.to == "exact" else f"a shorter side of {r.height}"
        steps.append(f"resized to {size} ({r.filter})")
    steps += [f"centre of {how.crop[0]} x {how.crop[1]}"] if how.crop else []
    steps += [f"times {how.scale:.6g}"] if how.scale != 1 else []
    if how.mean:
        steps.append(f"mean {_several(how.mean)}, deviation {_several(how.std)}")
    return ", ".join(steps) or "as it is"


def _several(values: Sequence[float]) -> str:
    return " ".join(f"{v:.4g}" for v in values)
