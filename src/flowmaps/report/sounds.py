"""Sound for the eye: clips as spectrograms, which every picture of samples then takes as images."""

from __future__ import annotations

import torch
from torch import Tensor

from ..metrics.sound import spectrograms


def as_images(x: Tensor) -> Tensor:
    """Samples as images (N, C, H, W) in [-1, 1]: images as they are, clips (N, channels, samples) as spectrograms.

    Loudness is logarithmic, from black (80 dB below the loudest place of all) to white, low frequencies below, time to the right.
    """
    if x.ndim != 3:
        return x
    from matplotlib import colormaps

    loud = spectrograms(x.detach().cpu().float())[:, 0].flip(
        1
    )  # 1.25 units are a factor of 10, which is 20 dB
    share = ((loud - loud.amax()) / 3.2 + 1).clamp(0, 1)
    colours = torch.from_numpy(colormaps["magma"](share.numpy()))[..., :3]
    return colours.movedim(-1, 1).float() * 2 - 1
