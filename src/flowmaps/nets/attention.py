"""Attention in the kernel that is fastest where it runs."""

import math

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""$\mathrm{softmax}(qk^\top/\sqrt{d})\,v$ with d the size of a head.

    Args:
        q: Queries (B, H, N, d).
        k: Keys (B, H, M, d).
        v: Values (B, H, M, d).
        mask: Which keys may be seen (B, M); every row needs one. None: all.

    Returns:
        (B, H, N, d).
    """
    seen = None if mask is None else mask[:, None, None]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # torch 2.13's fused backward in bfloat16 takes 3.6 times as long as its float32 one on a CPU, and
        # three times as slow as these products, which use AMX (benchmarks/kernels.json)
        logits = (q / math.sqrt(q.shape[-1])) @ k.mT
        if seen is not None:
            logits = logits.masked_fill(~seen, -torch.inf)
        return logits.float().softmax(-1).to(v.dtype) @ v
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
