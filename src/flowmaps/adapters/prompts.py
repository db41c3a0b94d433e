# The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
"""Prompts as a diffusers pipeline reads them: its own `encode_prompt`, by the names of its denoiser's arguments."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from ..errors import AdapterError
from .load import COMPONENTS, index_of, plain

UNUSED = (*COMPONENTS, "vae", "vocoder", "safety_checker", "image_encoder", "feature_extractor")
"""Parts of a pipeline that no prompt passes through."""


def reads_text(folder: str | Path) -> bool:
    """Whether a folder is that of a pipeline with a text encoder."""
    return index_of(str(folder)).get("text_encoder", (None, None))[1] is not None


@final
@dataclass(frozen=True)
class Piped:
    """A pipeline's own reading of texts (`flowmaps.data.text.Encoder`), as its denoiser wants it.

    A pipeline returns a sequence of vectors (`encoder_hidden_states`), a vector (`pooled_projections`, or SDXL's
    `text_embeds`) and a mask (`encoder_attention_mask`), in an order of its own; they are told apart by shape and type.
    SDXL's `time_ids` say an uncropped image of `size` pixels.

    Args:
        folder: Of the pipeline.
        names: Arguments of its denoiser.
        size: Side of its images in pixels.
    """

    folder: str
    names: tuple[str, ...]
    size: int

    @property
    def settings(self) -> dict[str, Any]:
        """As `Encoder.settings`."""
        return {"kind": "pipeline", **asdict(self), "names": list(self.names)}

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Conditions of N texts, each with a leading N, by the names of the denoiser's arguments.

        Raises:
            AdapterError: If the pipeline cannot encode a prompt, or gives nothing that the denoiser takes.
        """
        pipeline = _pipeline(self.folder)
        takes = inspect.signature(pipeline.encode_prompt).parameters
        fixed = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        fixed = {name: value for name, value in fixed.items() if name in takes}
        rows = [self._named(pipeline.encode_prompt(text, **fixed)) for text in texts]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    @property
    def length(self) -> int:
        """As `Encoder.length`."""
        return int(_pipeline(self.folder).tokenizer.model_max_length)

    def count(self, text: str) -> int:
        """As `Encoder.count`."""
        return len(_pipeline(self.folder).tokenizer(text)["input_ids"])

    def _named(self, values: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for value in values if isinstance(values, tuple) else (values,):
            if isinstance(value, Tensor) and len(value) == 1:
                found.setdefault(self._role(value), value.detach().cpu())
        if "text_embeds" in found:
            side = float(self.size)
            found["time_ids"] = torch.tensor([[side, side, 0, 0, side, side]])
        takes = {*self.names, *(("text_embeds", "time_ids") if self._added else ())}
        told = {name: value for name, value in found.items() if name in takes}
        if not told:
            raise AdapterError(
                f"encode_prompt of {self.folder} gives {sorted(found)}, of which the denoiser takes none: it takes {sorted(takes)}"
            )
        return told

    @property
    def _added(self) -> bool:
        return "added_cond_kwargs" in self.names

    def _role(self, value: Tensor) -> str:
        if value.ndim == 3:
            return "encoder_hidden_states"
        if not value.is_floating_point():
            return "encoder_attention_mask"
        return "pooled_projections" if "pooled_projections" in self.names else "text_embeds"


@cache
def _pipeline(folder: str) -> Any:
    """The part of a pipeline that reads prompts."""
    with plain(folder) as (place, kind):
        if kind is None or not hasattr(kind, "encode_prompt"):
            raise AdapterError(
                f"{folder} is no pipeline with encode_prompt: give data that tell its embeddings (flowmaps.data.Conditioned)"
            )
        absent = {name: None for name in (*UNUSED, "scheduler") if name in index_of(folder)}
        return kind.from_pretrained(place, **absent)
