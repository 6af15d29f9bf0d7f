"""Text to token ids and back: the tokenizer of an artifact, its chat template, and decoding piece by piece.

In: an artifact's tokenizer files. Out: ids, and text that never ends in half a character. Independent of
models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tilewright.runtime.arguments import utf8
from tilewright.runtime.chat import AS_TEXT, render_chat, special_tokens
from tilewright.runtime.errors import ArtifactError, SessionError
from tilewright.runtime.json_fields import DAMAGED

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tilewright.runtime.artifact import Artifact

#: prompt tokens that a streamed decode starts from, so that a first piece keeps its leading space
OVERLAP = 5


class TextCodec:
    """The tokenizer of one artifact, loaded on first use."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: Mapping[str, object],
        templates: Mapping[str, str],
        special: Mapping[str, str] | None = None,
    ) -> None:
        self.tokenizer, self.config, self.templates, self.special = (
            tokenizer,
            config,
            templates,
            special or {},
        )

    @staticmethod
    def of(artifact: Artifact) -> TextCodec:
        """Raises ArtifactError if the artifact has no tokenizer, or one that cannot be read."""
        text = artifact.text("tokenizer.json")
        if text is None:
            hint = "pass token ids instead of text, or compile from a folder that contains tokenizer.json"
            raise ArtifactError("the artifact has no tokenizer", str(artifact.path), hint)
        config = read_json(artifact, "tokenizer_config.json")
        special = special_tokens(config, read_json(artifact, "special_tokens_map.json"))
        return TextCodec(
            tokenizer_of(text, str(artifact.path)), config, _templates(artifact, config), special
        )

    def encode(self, text: str, special: bool = True) -> list[int]:
        return list(self.tokenizer.encode(utf8(text, "prompt"), add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    @property
    def has_template(self) -> bool:
        return bool(self.templates)

    def chat(
        self, messages: Sequence[Mapping[str, object]], variables: Mapping[str, object] | None = None
    ) -> list[int]:
        """Messages (`role`, `content`) through the chat template to ids, ready for the answer. `variables`:
        what else the template is given: `tools`, `documents`, `add_generation_prompt`, and any other."""
        return self.encode(self.render(messages, variables), special=False)

    def render(
        self, messages: Sequence[Mapping[str, object]], variables: Mapping[str, object] | None = None
    ) -> str:
        """The text that the messages become."""
        if not self.templates:
            raise SessionError("the tokenizer has no chat template", "messages", AS_TEXT)
        wanted = "tool_use" if (variables or {}).get("tools") and "tool_use" in self.templates else "default"
        if wanted not in self.templates:
            known = ", ".join(sorted(self.templates))
            raise SessionError(f"none of the chat templates ({known}) is the default", "messages", AS_TEXT)
        return render_chat(self.templates[wanted], messages, self.special, variables)

    @property
    def eos(self) -> frozenset[int]:
        """Ids of the tokenizer's own end token, and those that its configuration lists."""
        listed = self.config.get("eos_token_id")
        found = {i for i in (listed if isinstance(listed, list) else [listed]) if type(i) is int}
        own = self.tokenizer.token_to_id(self.special["eos_token"]) if "eos_token" in self.special else None
        return frozenset(found if own is None else {*found, own})


def read_json(artifact: Artifact, name: str) -> Mapping[str, object]:
    """A JSON object of the artifact; {} if it has no such file."""
    text = artifact.text(name)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ArtifactError(
            f"not readable as JSON ({str(e)[:120]})", str(artifact.file(name)), DAMAGED
        ) from None
    return value if isinstance(value, dict) else {}


def tokenizer_of(text: str, where: str) -> Tokenizer:
    """From the text of tokenizer.json; ArtifactError if it is none."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()  # both may be stated in the file, with any length
        tokenizer.no_truncation()
        return tokenizer
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # a panic of the tokenizers library is not an Exception
        raise ArtifactError(f"tokenizer.json cannot be read ({str(e)[:160]})", where, DAMAGED) from None


def _templates(artifact: Artifact, config: Mapping[str, object]) -> dict[str, str]:
    """Chat templates by name; `default` is the one for messages alone."""
    text, found = artifact.text("chat_template.jinja"), config.get("chat_template")
    if text is not None:
        return {"default": text}
    if isinstance(found, list):
        pairs = ((t.get("name"), t.get("template")) for t in found if isinstance(t, dict))
        return {str(name): body for name, body in pairs if isinstance(body, str)}
    return {"default": found} if isinstance(found, str) else {}


class Streamer:
    """Ids in, text pieces out. A piece ends at a whole character; text that may begin a stop string is held
    back."""

    def __init__(self, codec: TextCodec, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.codec, self.stop = codec, tuple(s for s in stop if s)
        self.ids = list(prompt[-OVERLAP:])
        self.start, self.read = 0, len(self.ids)
        self.held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is now certain."""
        self.ids.append(token)
        return self._emit(self._new_text(final=False))

    def finish(self) -> str:
        """What was held back."""
        text = self._emit(self._new_text(final=True))
        rest, self.held = ("", "") if self.stopped else (self.held, "")
        return text + rest

    def _new_text(self, final: bool) -> str:
        before = self.codec.decode(self.ids[self.start : self.read])
        after = self.codec.decode(self.ids[self.start :])
        if not final and after.endswith("\ufffd"):
            return ""  # perhaps the first bytes of a character
        if len(after) <= len(before) and after == before[: len(after)]:
            return ""
        self.start, self.read = self.read, len(self.ids)
        return after[_common(before, after) :]

    def _emit(self, text: str) -> str:
        if self.stopped:
            return ""
        self.held += text
        found = [at for at in (self.held.find(s) for s in self.stop) if at >= 0]
        if found:
            self.stopped = True
            out, self.held = self.held[: min(found)], ""
            return out
        keep = max((_overlap(self.held, s) for s in self.stop), default=0)
        out, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return out


def _common(a: str, b: str) -> int:
    """Length of the common start."""
    return (
        len(a)
        if b.startswith(a)
        else next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    )


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
