# The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
"""The autoencoder of a diffusers pipeline as a codec: images (B, C, H, W) in [-1, 1] to the latents that its denoiser sees."""

import hashlib
import math
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from ..errors import AdapterError
from .load import component, index_of


@final
class VaeCodec:
    r"""$z = (E(x) - \mathrm{shift}) \cdot \mathrm{scale}$ with the mean of the encoder's law; both factors from its config.

    `AutoencoderKL`, `AutoencoderTiny` and whatever encodes and decodes as they do; weights frozen, latents float32. Where the
    pipeline's denoiser sees squares of four latents in a row (Flux), latents are packed so: (B, H/2 W/2, 4 C).

    Args:
        path: A folder of a pipeline with a `vae`, or of an autoencoder alone.
        shape: Of an image, (C, H, W); by default as the autoencoder's config says.

    Raises:
        AdapterError: If there is no autoencoder, or it takes no such images.
    """

    def __init__(self, path: str | Path, shape: tuple[int, ...] | None = None) -> None:
        model = component(path, "vae")
        if model is None:
            raise AdapterError(f"{path} holds no autoencoder: a pipeline's folder has it as `vae`")
        self.model: Any = model.eval().requires_grad_(False)
        self.name = f"vae:{path}"
        config: Any = self.model.config
        self.scale = float(config.get("scaling_factor") or 1.0)
        self.shift = float(config.get("shift_factor") or 0.0)
        channels, side = int(config.in_channels), int(config.get("sample_size") or 256)
        factor = 2 ** (len(_blocks(config)) - 1)  # an encoder halves the side between its blocks
        self.data_shape = shape or (channels, side, side)
        fits = len(self.data_shape) == 3 and self.data_shape[0] in (1, channels)
        if not fits or any(side % factor for side in self.data_shape[1:]):
            raise AdapterError(
                f"{self.name} encodes images of {channels} channels whose sides are multiples of {factor}; "
                f"got {self.data_shape}: give --size"
            )
        _, height, width = self.data_shape
        latent = (int(config.latent_channels), height // factor, width // factor)
        self.squares = (latent[1] // 2, latent[2] // 2) if _packed(path) else None
        if self.squares is not None and (latent[1] % 2 or latent[2] % 2):
            raise AdapterError(
                f"{path} sees latents in squares of four: sides are multiples of {2 * factor}; got {self.data_shape}: give --size"
            )
        packed = self.squares and (math.prod(self.squares), 4 * latent[0])
        self.shape: tuple[int, ...] = packed or latent

    @property
    def key(self) -> str:
        """Names the codec in caches: its weights and factors, wherever they lie."""
        found = hashlib.sha256(f"{type(self.model).__name__} {self.scale} {self.shift}".encode())
        for name, value in sorted(self.model.state_dict().items()):
            found.update(name.encode())
            found.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        return found.hexdigest()

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to latents (B, *shape)."""
        x = x.expand(
            -1, int(self.model.config.in_channels), -1, -1
        )  # grey images are colour images
        found = self.model.encode(x.to(self.model.device, self.model.dtype))
        law = getattr(found, "latent_dist", None)
        z = found.latents if law is None else law.mode()
        z = (z.to(x.device, torch.float32) - self.shift) * self.scale
        if self.squares is None:
            return z
        rows, columns = self.squares
        parts = z.unflatten(3, (columns, 2)).unflatten(2, (rows, 2))  # (B, C, rows, 2, columns, 2)
        return parts.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, *shape) to images (B, C, H, W) in [-1, 1]."""
        if self.squares is not None:
            parts = z.unflatten(2, (-1, 2, 2)).unflatten(1, self.squares)
            z = parts.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        point = z / self.scale + self.shift
        out = self.model.decode(point.to(self.model.device, self.model.dtype)).sample
        out = out.to(z.device, torch.float32).clamp(-1, 1)
        return out.mean(1, keepdim=True) if self.data_shape[0] < out.shape[1] else out


def open_vae(path: str, shape: tuple[int, ...]) -> VaeCodec:
    """`vae:FOLDER` for `flowmaps.codec.open_codec`."""
    return VaeCodec(path, shape)


PACKED = ("FluxTransformer2DModel",)
"""Denoisers that see latents in squares of four."""


def _packed(path: str | Path) -> bool:
    kind = index_of(str(path)).get("transformer", (None, None))
    return isinstance(kind, list | tuple) and kind[1] in PACKED


def _blocks(config: Any) -> Any:
    """Blocks of the encoder: of AutoencoderTiny they have another name."""
    found = config.get("block_out_channels")
    return config.get("encoder_block_out_channels") if found is None else found
