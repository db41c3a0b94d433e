# The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
r"""Rewards of pictures by CLIP: how well they fit a prompt, and how well they please.

    reward = clip_score("openai/clip-vit-large-patch14", "a red square")
    reward = aesthetic("openai/clip-vit-large-patch14", "aesthetic.safetensors")

Both are differentiable callables from pictures (B, C, H, W) in [-1, 1] to rewards (B,), so they steer and tune as any other;
before one with a decoder put `flowmaps.control.rewards.Decoded`. They hack easily: hold another reward out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from ..errors import AdapterError, MissingExtraError

try:
    import transformers
except ImportError as error:
    raise MissingExtraError(
        "CLIP comes with Hugging Face transformers: pip install 'flowmaps[diffusers]'"
    ) from error

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the colours that CLIP was trained on (Radford et al. 2021, arXiv:2103.00020, released code)."""


@final
@dataclass(frozen=True, eq=False)
class ClipReward:
    r"""A linear function $w\cdot e(x) + b$ of CLIP's embedding e(x) of a picture, which has length 1.

    Attributes:
        model: A `transformers.CLIPModel`, frozen.
        weight: w, (D,): a prompt's embedding, or a head's.
        bias: b.
    """

    model: Any
    weight: Tensor
    bias: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.embed(x) @ self.weight.to(x) + self.bias

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings (B, D) of pictures (B, C, H, W) in [-1, 1]; one channel is taken for grey."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise AdapterError(
                f"CLIP looks at pictures (B, 1 or 3, H, W) in [-1, 1]; got {tuple(x.shape)}"
            )
        side = self.model.config.vision_config.image_size
        seen = interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False)
        mean, std = (torch.tensor(c).to(x)[:, None, None] for c in (MEAN, STD))
        pixels = (seen.expand(-1, 3, -1, -1) / 2 + 0.5 - mean) / std
        return normalize(_pooled(self.model.get_image_features(pixel_values=pixels)), dim=-1)


def clip_score(source: str | Path, prompt: str, *, device: str = "cpu") -> ClipReward:
    """The cosine between a picture and a prompt, in [-1, 1] (CLIPScore, Hessel et al. 2021, arXiv:2104.08718, without its scale).

    Args:
        source: Folder or name on the hub of a CLIP model with its tokenizer.
        prompt: What the picture should show.
        device: Where the model goes.

    Raises:
        AdapterError: If there is no such model.
    """
    model = _opened(transformers.CLIPModel, source).to(device)
    words = _opened(transformers.AutoTokenizer, source)(
        [prompt], return_tensors="pt", truncation=True
    )
    with torch.no_grad():
        text = _pooled(model.get_text_features(**words.to(device)))
    return ClipReward(model, normalize(text, dim=-1)[0])


def aesthetic(source: str | Path, head: str | Path, *, device: str = "cpu") -> ClipReward:
    """How people rate pictures like it, by a stack of linear layers on CLIP's embedding (LAION's improved aesthetic predictor).

    That predictor has no activations between its layers, so its stack is one linear function.

    Args:
        source: Folder or name on the hub of the CLIP model that the head was trained on.
        head: Its weights, safetensors with `...weight` and `...bias` of each layer, in the order of their names.
        device: Where the model goes.

    Raises:
        AdapterError: If the head does not fit.
    """
    from safetensors.torch import load_file

    model = _opened(transformers.CLIPModel, source).to(device)
    try:
        layers = load_file(head)
        weights = [layers[key] for key in sorted(layers) if key.endswith("weight")]
        biases = [layers[key] for key in sorted(layers) if key.endswith("bias")]
        weight, bias = torch.eye(model.config.projection_dim), torch.zeros(1)
        for matrix, shift in zip(weights, biases, strict=True):
            weight, bias = matrix @ weight, matrix @ bias + shift if bias.numel() > 1 else shift
        return ClipReward(model, weight.reshape(-1).to(device), float(bias))
    except Exception as error:
        raise AdapterError(
            f"{head} is no stack of linear layers from {model.config.projection_dim} numbers to 1 ({error})"
        ) from error


def _opened(kind: Any, source: str | Path) -> Any:  # classes of transformers
    try:
        found = kind.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"no CLIP model at {source}: {str(error).splitlines()[0]}; give a folder or a name on the hub"
        ) from error
    return found.eval().requires_grad_(False) if isinstance(found, nn.Module) else found


def _pooled(found: Any) -> Tensor:
    """What is projected: a tensor in transformers 4, a field of its outputs in 5."""
    return found if isinstance(found, Tensor) else found.pooler_output
