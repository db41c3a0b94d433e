r"""The conditional velocity without the noise of its own sample: averaged over the data of a step (velocity="pooled").

A point $x = \alpha x_0 + \sigma\varepsilon$ does not tell which of the data it was made of. Among data $x_j$ drawn alike, $x_0$
one of them, it is $x_j$ with probability

$$ w_j \propto \exp\Big(-\frac{\|x-\alpha x_j\|^2}{2\sigma^2}\Big), \qquad
   \bar v = \dot\alpha\,\bar x + \dot\sigma\,\frac{x-\alpha\bar x}{\sigma}, \quad \bar x = \sum_j w_j x_j , $$

so $\bar v = E[v_c \mid x, x_1, x_2, \dots]$, and by the tower rule $E[\bar v \mid x] = E[v_c \mid x] = b_s(x)$, whatever their
number: no bias, and less variance (Rao-Blackwell), most so near pure noise, where one-step samplers start. It stands wherever the
conditional velocity may (the row's own x, linearly); it costs no network call, but products of rows and data.

Source: Xu, Tong & Jaakkola 2023 (stable target field, arXiv:2302.00670), for scores; the rows here are the batch's own and those of
the steps before (`Recipe.memory`), which are read already.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from ..core.interpolant import Interpolant
from ..core.shape import like


@final
@dataclass(frozen=True, eq=False)
class Pool:
    """Data that rows may have been made of.

    Attributes:
        x: Samples (R, *D), each row's own x_0 among them.
        same: Whether a sample was told what a row is told (B, R): elsewhere it has no part in the row's law.
    """

    x: Tensor
    same: Tensor


class Kept(NamedTuple):
    """Data that were read: samples (R, *D), and a number (R,) for each that is equal where they were told the same."""

    x: Tensor
    told: Tensor

    def pool(self, rows: Tensor, dropped: Tensor) -> Pool:
        """What some of these `rows` (B,) are pooled over: those `dropped` (B,), told nothing any more, over all."""
        return Pool(self.x, (self.told[rows][:, None] == self.told) | dropped[:, None])


def together(parts: Iterable[Kept]) -> Kept:
    """Several as one, in order."""
    x, told = map(torch.cat, zip(*parts, strict=True))
    return Kept(x, told)


def kept(x_0: Tensor, cond: Mapping[str, Tensor]) -> Kept:
    """Data (R, *D) and what they were told, tensors with a leading R, as they are remembered."""
    told = list(cond.values())
    if not told:
        return Kept(x_0, torch.zeros(len(x_0), dtype=torch.int64))
    if len(told) == 1 and told[0].ndim == 1 and not told[0].is_floating_point():
        return Kept(x_0, told[0].to("cpu", torch.int64))
    # 63 bits of a hash: conditions may be embeddings of thousands of numbers, and most rows differ
    rows = zip(*(part.cpu().reshape(len(x_0), -1).numpy() for part in told), strict=True)
    hashes = (hashlib.blake2b(b"".join(map(bytes, row)), digest_size=8) for row in rows)
    return Kept(x_0, torch.tensor([int.from_bytes(h.digest(), "big") >> 1 for h in hashes]))


def pooled(path: Interpolant, x: Tensor, v: Tensor, s: Tensor, pool: Pool) -> Tensor:
    r"""$\bar v$ (B, *D) at points `x` (B, *D) of the path at times `s` (B,), from their conditional velocity `v`.

    Where $\sigma$ is 0 the point is its own data, and v is returned.
    """
    with torch.autocast(x.device.type, enabled=False):
        own = path.endpoints(v, x, s, "velocity")[0]
        a, sigma = path.alpha(s), path.sigma(s).clamp(min=_LEAST)
        data, flat = pool.x.to(x.dtype).flatten(1), x.flatten(1)
        fit = flat @ data.mT * (a / sigma**2)[:, None]
        fit = fit - (a / sigma).square()[:, None] * data.square().sum(1) / 2
        shares = fit.masked_fill(~pool.same, -torch.inf).softmax(1)
        mean = (shares @ data).view_as(x)
        # as a change of v: exact where one share is 1, and no quotient of a difference that vanishes with sigma
        slope = path.dalpha(s) - a * path.dsigma(s) / sigma
        moved = v + like(slope, x) * (mean - own)
        return torch.where(like(path.sigma(s) > _LEAST, x), moved, v)


_LEAST = 1e-2
"""Noise below which a point tells its own data from all others; rounding would be divided by it."""
