# The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
"""Prompts as a diffusers pipeline reads them: its own `encode_prompt`, by the names of its denoiser's arguments."""

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from ..errors import AdapterError
from .load import COMPONENTS, index_of

UNUSED = (*COMPONENTS, "vae", "vocoder", "safety_checker", "image_encoder", "feature_extractor")
"""Parts of a pipeline that no prompt passes through."""


def reads_text(folder: str | Path) -> bool:
    """Whether a folder is that of a pipeline with a text encoder."""
    return index_of(str(folder)).get("text_encoder", (None, None))[1] is not None


@torch.no_grad()
def encode(
    folder: str | Path, texts: Sequence[str], names: Iterable[str], size: int
) -> dict[str, Tensor]:
    """What the denoiser is told of each text (P, ...), on the CPU, by the names of its arguments.

    A pipeline returns a sequence of vectors (`encoder_hidden_states`), a vector (`pooled_projections`, or SDXL's
    `text_embeds`) and a mask (`encoder_attention_mask`), in an order of its own; they are told apart by shape and type.
    SDXL's `time_ids` say an uncropped image of `size` pixels.

    Raises:
        AdapterError: If the pipeline cannot encode a prompt, or gives nothing that the denoiser takes.
    """
    kind = getattr(diffusers, index_of(str(folder)).get("_class_name", ""), None)
    if kind is None or not hasattr(kind, "encode_prompt"):
        raise AdapterError(
            f"{folder} is no pipeline with encode_prompt: give the embeddings in a data set of your own (flowmaps.data.Conditioned)"
        )
    spared = {name: None for name in UNUSED if name in index_of(str(folder))}
    pipeline = kind.from_pretrained(str(folder), **spared)
    takes = inspect.signature(pipeline.encode_prompt).parameters
    fixed = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    fixed = {name: value for name, value in fixed.items() if name in takes}
    rows = [_named(pipeline.encode_prompt(text, **fixed), set(names), size) for text in texts]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _named(values: Any, names: set[str], size: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for value in values if isinstance(values, tuple) else (values,):
        if isinstance(value, Tensor) and len(value) == 1:
            found.setdefault(_role(value, names), value.cpu())
    if "text_embeds" in found:
        found["time_ids"] = torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32)
    told = {
        name: value for name, value in found.items() if name in names | {"text_embeds", "time_ids"}
    }
    if not told:
        raise AdapterError(
            f"the pipeline's encode_prompt gives {sorted(found)}, of which its denoiser takes none: it takes {sorted(names)}"
        )
    return told


def _role(value: Tensor, names: set[str]) -> str:
    if value.ndim == 3:
        return "encoder_hidden_states"
    if not value.is_floating_point():
        return "encoder_attention_mask"
    return "pooled_projections" if "pooled_projections" in names else "text_embeds"
