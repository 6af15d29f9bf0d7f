"""When a policy acts on a sequence, and which of its queries are observed: from the sequence's lengths alone.

In: the lengths of what a sequence is given, item by item. Out: calls of `compress`. A prompt is an item of
more than one token; the policy acts when it is complete, however it was cut into steps, and during decode
after every `every` further tokens. So neither chunks nor the rest of a batch change what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tilewright.runtime.cache.access import F32, CacheAccess
from tilewright.runtime.cache.policy import CachePolicy, compress
from tilewright.runtime.errors import SessionError


@dataclass
class Progress:
    """How far one sequence is: `length` tokens processed, `prompt`: the length at its latest prompt's end,
    `start`, `end`: the lengths before and after the item in progress, `memory`: what the policy remembers."""

    length: int = 0
    prompt: int = 0
    start: int = 0
    end: int = 0
    memory: dict[str, F32] = field(default_factory=dict)

    def copy(self) -> Progress:
        """For a fork of the sequence."""
        return replace(self, memory={name: x.copy() for name, x in self.memory.items()})

    def truncate(self, length: int) -> None:
        """The tokens from `length` on are forgotten."""
        self.length = self.start = self.end = length
        self.prompt = min(self.prompt, length)


@dataclass(frozen=True)
class CacheManager:
    """Applies a policy to the sequences of a session. `emits`: whether the model's attention adds to the
    scores; SessionError if it does not and the policy needs it."""

    policy: CachePolicy
    emits: bool = True

    def __post_init__(self) -> None:
        if self.policy.observe != "none" and not self.emits:
            raise SessionError(
                "needs the attention that tokens receive, which this artifact does not record",
                f"cache policy {self.policy}",
                f'compile it with cache="{self.policy}", or use a policy that needs none, such as window',
            )

    def begin(self, p: Progress, tokens: int) -> None:
        """An item of `tokens` tokens begins; its pieces follow with `advance`."""
        p.start, p.end = p.length, p.length + tokens

    def observed(self, p: Progress, tokens: int) -> range:
        """Which of the next `tokens` tokens' queries are observed, as offsets among them."""
        observe = self.policy.observe
        decoding = p.end - p.start == 1 and p.prompt > 0
        if decoding and not (self.policy.decodes and self.policy.observes_decode):
            return range(0)
        if not isinstance(observe, int):
            return range(tokens if observe == "all" else 0)
        acts = self.next_act(p)
        return range(0) if acts is None else range(max(0, acts - observe - p.length), tokens)

    def choice(self, p: Progress) -> tuple[int, int, int] | None:
        """What the next token reads of the cache (`CachePolicy.choice`); None: everything, as prompts do."""
        if not self.policy.selects or p.end - p.start > 1:
            return None
        return self.policy.choice(p.length + 1, p.prompt)

    def next_act(self, p: Progress) -> int | None:
        """The length at which the policy acts next; None if it does not before the next prompt."""
        if p.end - p.start > 1 and p.length < p.end:
            return p.end
        if not self.policy.decodes:
            return None
        every = self.policy.every
        return p.prompt + ((p.length - p.prompt) // every + 1) * every

    def advance(self, p: Progress, tokens: int, cache: CacheAccess) -> bool:
        """So many tokens were processed: lets the policy act if it is time to. Gives whether it did."""
        acts = self.next_act(p)
        p.length += tokens
        if p.length == p.end and p.end - p.start > 1:
            p.prompt = p.end
        if p.length != acts or not self.policy.evicts:
            return False
        compress(self.policy, cache)
        if isinstance(self.policy.observe, int):  # the next observation starts afresh
            for layer in range(cache.layers):
                cache.clear_scores(layer)
        return True
