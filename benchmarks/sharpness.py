"""A reward that is a black box: how sharp pictures are. `flowmaps tune RUN --reward benchmarks/sharpness.py:sharpness`."""

import numpy as np
import torch
from torch import Tensor


def sharpness(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels (B,), by numpy: values without a gradient."""
    pixels = x.detach().cpu().double().numpy()
    across, down = np.abs(np.diff(pixels, axis=-1)), np.abs(np.diff(pixels, axis=-2))
    return torch.as_tensor(across.mean((1, 2, 3)) + down.mean((1, 2, 3))).to(x)
