# The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
"""What a pipeline tells its denoiser beside the conditions, the same for every row, as the pipeline itself would."""

from typing import Any

import torch
from torch import Tensor, nn

from .denoiser import core_of

GUIDANCE = 3.5
"""The scale that `FluxPipeline` tells a model with guidance in it unless it is asked for another."""


def constants(
    model: nn.Module, squares: tuple[int, int] | None, words: int
) -> dict[str, tuple[Tensor, ...] | Tensor]:
    """Arguments without a batch axis: of Flux the places of latents and words, and the scale of its own guidance.

    Args:
        model: The denoiser.
        squares: Rows and columns of packed latents, if they are.
        words: Tokens of a text.
    """
    if squares is None:
        return {}
    rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in squares), indexing="ij")
    places = torch.stack([torch.zeros(rows.numel()), rows.flatten(), columns.flatten()], -1)
    found: dict[str, Any] = {"img_ids": places, "txt_ids": torch.zeros(words, 3)}
    config: Any = getattr(core_of(model), "config", {})
    return (
        found | {"guidance": torch.tensor([GUIDANCE])} if config.get("guidance_embeds") else found
    )
