"""Text as tensors.

An encoder turns texts into conditions: `text`, and `mask` where it cannot be told from the text which tokens are there. The
empty text is "nothing is told", for every encoder. [`Words`][flowmaps.data.text.Words] needs no download: its bytes are read by
layers that are trained along (`flowmaps.nets.text`); [`Pretrained`][flowmaps.data.text.Pretrained] is any text model of
`transformers`. Its settings rebuild an encoder, so a checkpoint can read a prompt.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor

from flowmaps.data.cached import kept as tensors
from flowmaps.errors import DataError, MissingExtraError


class Encoder(Protocol):
    """What turns texts into conditions."""

    @property
    def settings(self) -> dict[str, Any]:
        """Json that [`encoder`][flowmaps.data.text.encoder] rebuilds it from."""
        ...

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Conditions of N texts, each with a leading N; all zeros for an empty text."""
        ...

    @property
    def length(self) -> int:
        """How many tokens it reads; the rest of a longer text is left out."""
        ...

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        ...


@final
@dataclass(frozen=True)
class Words:
    """The bytes of the words, lower case: no vocabulary, so every language and every emoji is text.

    A word is a run of letters and digits, or any other sign; words of more bytes than `letters` are cut into several.

    Args:
        length: Words that are read.
        letters: Bytes of a word.

    Example:
        >>> Words(length=3, letters=4)(["Red dot"])["text"].tolist()
        [[[114, 101, 100, 0], [100, 111, 116, 0], [0, 0, 0, 0]]]
    """

    length: int = 32
    letters: int = 12

    @property
    def settings(self) -> dict[str, Any]:
        """As `Encoder.settings`."""
        return {"kind": "words", **asdict(self)}

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`text` (N, length, letters), uint8."""
        rows = b"".join(
            b"".join(self._words(text)[: self.length]).ljust(self.length * self.letters, b"\0")
            for text in texts
        )
        found = torch.frombuffer(bytearray(rows), dtype=torch.uint8)
        return {"text": found.reshape(len(texts), self.length, self.letters)}

    def count(self, text: str) -> int:
        """As `Encoder.count`."""
        return len(self._words(text))

    def _words(self, text: str) -> list[bytes]:
        size = self.letters
        whole = (w.encode(errors="replace") for w in re.findall(r"\w+|[^\w\s]", text.lower()))
        return [w[i : i + size].ljust(size, b"\0") for w in whole for i in range(0, len(w), size)]


@final
@dataclass(frozen=True)
class Pretrained:
    """The last hidden states of a text model of `transformers`: CLIP, T5, MiniLM and their relatives. Every text is read once.

    Args:
        model: A folder that `save_pretrained` wrote, or a name on the hub.
        length: Tokens that are read.

    Raises:
        MissingExtraError: Without the package `transformers`.
        DataError: If there is no such model, or it is not one of text.
    """

    model: str
    length: int = 32

    @property
    def settings(self) -> dict[str, Any]:
        """As `Encoder.settings`."""
        return {"kind": "pretrained", **asdict(self)}

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`text` (N, length, features), float32, zero where `mask` (N, length) says that there is no token."""
        tokenizer, model = _pretrained(self.model)
        read = tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )
        with torch.no_grad():
            found: Tensor = model(**read).last_hidden_state.float()
        some = torch.tensor([bool(text) for text in texts])
        mask = read["attention_mask"].bool() & some[:, None]
        return {"text": found * mask[:, :, None], "mask": mask}

    def count(self, text: str) -> int:
        """As `Encoder.count`."""
        return len(_pretrained(self.model)[0](text, verbose=False)["input_ids"])


@cache
def _pretrained(name: str) -> tuple[Any, Any]:
    """Tokenizer and text model by name."""
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(
            f"reading text with {name!r} needs the package transformers: pip install 'flowmaps[diffusers]'"
        ) from error
    library: Any = transformers
    try:
        kind = library.AutoConfig.from_pretrained(name).model_type
        # of these the part that reads; a CLIP's own configuration is of kind clip_text_model
        readers = {"clip": "CLIPTextModel", "t5": "T5EncoderModel"}
        reader = getattr(library, readers.get(kind.partition("_")[0], "AutoModel"))
        model = reader.from_pretrained(name)
        return library.AutoTokenizer.from_pretrained(name), model.eval().requires_grad_(False)
    except Exception as error:  # transformers raises many kinds
        why = " ".join(str(error).split())[:200]
        raise DataError(
            f"expected a text model of transformers, a folder or a name on the hub; got {name!r} ({why}); check the name and "
            "the network, or read text with the encoder 'words', which needs neither"
        ) from error


def encoder(settings: Mapping[str, Any]) -> Encoder:
    """An encoder from its settings.

    Raises:
        DataError: For a kind that is not known here.
    """
    values = dict(settings)
    kind = values.pop("kind", None)
    if kind == "pipeline":
        return import_module("flowmaps.adapters.prompts").Piped(
            **values | {"names": tuple(values["names"])}
        )
    if kind not in ("words", "pretrained"):
        raise DataError(
            f"expected an encoder 'words', 'pretrained' or 'pipeline'; got {kind!r}; upgrade flowmaps"
        )
    return Words(**values) if kind == "words" else Pretrained(**values)


def words_for(texts: Sequence[str]) -> Words:
    """The reader of bytes for captions: as many words as the longest has, 64 at most."""
    longest = max(Words().count(text) for text in texts)
    return Words(length=min(max(longest, 1), 64))


@lru_cache(maxsize=2)
def kept(encoder: Encoder, texts: tuple[str, ...]) -> dict[str, Tensor]:
    """What an encoder says of texts, from a file that is named by both."""
    said = hashlib.sha256(json.dumps([encoder.settings, texts]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowmaps"

    def read() -> dict[str, Tensor]:
        parts = [encoder(texts[i : i + 64]) for i in range(0, len(texts), 64)]
        return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}

    return tensors(folder / f"texts-{said}.safetensors", read)
