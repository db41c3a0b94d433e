"""A reward that is a black box: how small a file a picture makes.

    flowmaps tune RUN --reward benchmarks/compressibility.py:compressibility

JPEG compressibility is the black box of Black et al. 2023 (DDPO, arXiv:2305.13301): it has values and no gradient.
"""

import io

import torch
from PIL import Image
from torch import Tensor


def compressibility(x: Tensor) -> Tensor:
    """Bytes of the JPEG file of quality 80, times -1/100, of grey pictures (B, 1, H, W) in [-1, 1]: (B,)."""
    pixels = ((x.detach().cpu().float()[:, 0] + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    sizes = list[float]()
    for picture in pixels:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=80)
        sizes.append(-len(file.getvalue()) / 100)
    return torch.tensor(sizes).to(x)
