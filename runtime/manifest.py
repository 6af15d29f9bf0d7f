"""`manifest.json`: what an artifact holds. One set of dataclasses for the writer, the loader and `inspect`.

In: JSON text (or the values to write). Out: a `Manifest` whose every field was checked for type and range.
Executes nothing and opens no other file.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass

from tilewright.runtime.errors import ArtifactError
from tilewright.runtime.json_fields import DAMAGED, Node
from tilewright.runtime.task_entry import TaskEntry, parse_task

FORMAT = 6
HEADER = 64
MAGIC = b"TILEWGHT"
MANIFEST = "manifest.json"
WEIGHTS = "weights.bin"
LARGEST = 64 << 20
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]{0,120}")
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True)
class FileEntry:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class WeightEntry:
    """One buffer of weights.bin: `type` as text without encoding, `elements` logical values. `read`: `whole`
    by every step, or only `rows` of it (a token embedding, experts). `solver`: what chose the stored numbers
    (empty: rounding to nearest); `values`: `model`, or `rescaled` if calibration multiplied channels."""

    name: str
    offset: int
    bytes: int
    elements: int
    type: str
    encoding: str
    read: str = "whole"
    solver: str = ""
    values: str = "model"


@dataclass(frozen=True)
class LevelEntry:
    """One instruction set: CPU features it needs, its library and its source."""

    name: str
    features: tuple[str, ...]
    library: str
    source: str


@dataclass(frozen=True)
class TensorEntry:
    name: str
    dtype: str
    shape: tuple[str, ...]


@dataclass(frozen=True)
class GraphEntry:
    name: str
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]


@dataclass(frozen=True)
class StateEntry:
    """The cache of one layer: `bytes` of one sequence at full context, `token_bytes` of each token that it
    holds; `window`: tokens older than this are never read again (0: all are read); `evicts`: it may lose
    tokens; `observes`: it counts the attention that tokens get; `select`: how tokens choose the blocks that
    they read; `recent`: of how many of the last tokens bf16 rows are kept too, which take at most
    `recent_bytes` per sequence."""

    name: str
    heads: int
    context: int
    k: str
    v: str
    bytes: int
    token_bytes: int
    window: int = 0
    evicts: bool = False
    observes: bool = False
    select: str = ""
    recent: int = 0
    recent_bytes: int = 0

    @property
    def kind(self) -> str:
        """How it is kept, in words."""
        reads = f"window of {self.window}" if self.window else "all tokens"
        if self.select:
            reads = f"blocks by {self.select}"
        reads += f", the last {self.recent} in bf16" if self.recent else ""
        if not self.evicts:
            return reads
        return f"{reads} until evicted" + (", attention counted" if self.observes else "")


@dataclass(frozen=True)
class StepEntry:
    """How graph `step` is called. `block`: most rows in one query block, a row of its input `blocks`, whose
    columns are `columns`; `slice`: positions that attention takes at once, of which caches hold whole ones;
    `sequences`: most of one session."""

    block: int
    columns: tuple[str, ...]
    slice: int
    sequences: int


@dataclass(frozen=True)
class StageEntry:
    """One stage of the compile: its text is `ir/NAME.ir`. `form`: `graph` or `plan`; `made_by`: the pass
    with its options (empty: what was captured).
    """

    name: str
    form: str
    made_by: str

    @property
    def file(self) -> str:
        return f"ir/{self.name}.ir"


@dataclass(frozen=True)
class Manifest:
    """`id` ties libraries and weights together; `limits` holds vocab, context, max_tokens of the step (0:
    none); `step` is how it is called, None without one; `task` is what an encoder or vision model is for,
    None for any other model."""

    id: str
    made_by: str
    levels: tuple[LevelEntry, ...]
    graphs: tuple[GraphEntry, ...]
    symbols: dict[str, tuple[int, int]]
    states: tuple[StateEntry, ...]
    weights: tuple[WeightEntry, ...]
    weights_bytes: int
    limits: dict[str, int]
    recipe: dict[str, object]
    meta: dict[str, object]
    stages: tuple[StageEntry, ...]
    kernels: tuple[str, ...]
    step: StepEntry | None
    task: TaskEntry | None
    files: dict[str, FileEntry]
    format: int = FORMAT

    @property
    def parameters(self) -> int:
        return sum(w.elements for w in self.weights)

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(w.bytes for w in self.weights) / max(self.parameters, 1)

    def to_json(self) -> str:
        body = asdict(self)
        body["bits_per_weight"] = round(self.bits_per_weight, 4)
        body["parameters"] = self.parameters
        return json.dumps({**body, "seal": seal(body)}, indent=1, ensure_ascii=False) + "\n"


def seal(body: dict[str, object]) -> str:
    """SHA-256 of everything else in the manifest, in canonical form."""
    rest = {k: v for k, v in body.items() if k != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_manifest(text: bytes, where: str = MANIFEST) -> Manifest:
    """Raises ArtifactError naming the field, what was expected and what was found."""
    if len(text) > LARGEST:
        raise ArtifactError(f"expected at most {LARGEST} bytes, got {len(text)}", where, DAMAGED)
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ArtifactError(f"not readable as JSON ({str(e)[:120]})", where, DAMAGED) from None
    node = Node.of(raw, where)
    version = node.integer("format", 0, 1 << 31)
    if version != FORMAT:
        hint = "compile the model again with this version" if version < FORMAT else "update tilewright"
        raise ArtifactError(f"format {version}, this version reads format {FORMAT}", where, hint)
    if _seal_of(node) != node.text("seal"):
        raise ArtifactError("the seal does not match the contents", where, DAMAGED)
    return _manifest(node)


def _seal_of(node: Node) -> str:
    try:
        return seal(node.value)
    except (ValueError, RecursionError) as e:
        raise ArtifactError(f"holds values that JSON cannot ({str(e)[:80]})", node.where, DAMAGED) from None


def _manifest(node: Node) -> Manifest:
    weights_bytes = node.integer("weights_bytes", HEADER)
    limits = node.node("limits")
    return Manifest(
        id=_hexes(node, "id", 32),
        made_by=node.text("made_by"),
        levels=tuple(_level(n) for n in node.nodes("levels")),
        graphs=tuple(_graph(n) for n in node.nodes("graphs")),
        symbols=_symbols(node.node("symbols")),
        states=tuple(_state(n) for n in node.nodes("states")),
        weights=_weights(node, weights_bytes),
        weights_bytes=weights_bytes,
        limits={k: limits.integer(k, 0, (1 << 31) - 1) for k in ("vocab", "context", "max_tokens")},
        recipe=node.node("recipe").value,
        meta=node.node("meta").value,
        stages=tuple(_stage(n) for n in node.nodes("stages")),
        kernels=node.texts("kernels"),
        step=None if node.raw("step") is None else _step(node.node("step")),
        task=None if node.raw("task") is None else parse_task(node.node("task")),
        files={
            _file_name(k, node.where): _file(Node.of(v, f"{node.where}.files.{k}"))
            for k, v in node.node("files").value.items()
        },
    )


def _hexes(node: Node, key: str, length: int) -> str:
    text = node.text(key)
    if len(text) != length or not _HEX.fullmatch(text):
        raise ArtifactError(
            f"{key}: expected {length} hexadecimal digits, got {text[:80]!r}", node.where, DAMAGED
        )
    return text


def _file(node: Node) -> FileEntry:
    return FileEntry(node.integer("bytes"), _hexes(node, "sha256", 64))


def _file_name(name: str, where: str) -> str:
    """A plain relative path of at most three parts: nothing may lead out of the folder."""
    parts = name.split("/")
    if len(parts) > 3 or not all(_PART.fullmatch(p) and ".." not in p for p in parts) or name == MANIFEST:
        raise ArtifactError(f"files: {name[:80]!r} is not a file name inside the artifact", where, DAMAGED)
    return name


def _level(node: Node) -> LevelEntry:
    library, source = (_file_name(node.text(k), node.where) for k in ("library", "source"))
    return LevelEntry(node.text("name", 40), node.texts("features"), library, source)


def _tensor(node: Node) -> TensorEntry:
    return TensorEntry(node.text("name"), node.text("dtype", 8), node.texts("shape"))


def _graph(node: Node) -> GraphEntry:
    inputs, outputs = (tuple(_tensor(n) for n in node.nodes(k)) for k in ("inputs", "outputs"))
    return GraphEntry(node.text("name"), inputs, outputs)


def _state(node: Node) -> StateEntry:
    heads, context = node.integer("heads", 1, 1 << 20), node.integer("context", 1, (1 << 31) - 1)
    sizes = node.integer("bytes"), node.integer("token_bytes"), node.integer("window", 0, (1 << 31) - 1)
    flags = node.flag("evicts"), node.flag("observes")
    name, k, v, select = (node.text(key) for key in ("name", "k", "v", "select"))
    recent = node.integer("recent", 0, (1 << 31) - 1), node.integer("recent_bytes")
    return StateEntry(name, heads, context, k, v, *sizes, *flags, select, *recent)


def _step(node: Node) -> StepEntry:
    block, size = node.integer("block", 1, 1 << 10), node.integer("slice", 1, 1 << 20)
    return StepEntry(block, node.texts("columns"), size, node.integer("sequences", 1, (1 << 31) - 1))


def _stage(node: Node) -> StageEntry:
    return StageEntry(node.text("name", 120), node.text("form", 8), node.text("made_by", 1 << 20))


def _symbols(node: Node) -> dict[str, tuple[int, int]]:
    out: dict[str, tuple[int, int]] = {}
    for name in node.value:
        ends = node.items(name, 2)
        match ends:
            case [int(lo), int(hi)] if 0 <= lo <= hi < 1 << 40:
                out[name] = (lo, hi)
            case _:
                raise ArtifactError(f"{name}: expected [least, most], got {ends!r:.60}", node.where, DAMAGED)
    return out


def _weights(node: Node, total: int) -> tuple[WeightEntry, ...]:
    out: list[WeightEntry] = []
    end = HEADER
    for n in node.nodes("weights"):
        offset, size = n.integer("offset", HEADER, total), n.integer("bytes", 0, total)
        if offset % 64 or offset < end or offset + size > total:
            raise ArtifactError(
                f"bytes {offset} to {offset + size} overlap, are not aligned to 64, or leave the {total} "
                "bytes",
                n.where,
                DAMAGED,
            )
        end = offset + size
        words = (n.text(k) for k in ("type", "encoding", "read", "solver", "values"))
        out.append(WeightEntry(n.text("name"), offset, size, n.integer("elements"), *words))
    return tuple(out)
