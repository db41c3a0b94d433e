r"""Which rows come at which step: a shuffle that can be resumed from a number.

Rows are laid out on one endless line, epoch after epoch, each epoch a permutation
$\pi_{\text{seed}, e}$ of $0..n-1$. Step $k$ takes positions $kb, \dots, kb + b - 1$ of that line,
so it is a pure function of (seed, k), batches may straddle epochs, and nothing is dropped.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from torch import Generator, Tensor

from flowmaps.errors import DataError


def seeded(*key: int | str) -> Generator:
    """A CPU generator whose stream is fixed by all parts of `key` together.

    Hashed, because sums such as seed + epoch give neighbouring seeds the same streams.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=seeded("epoch", seed, epoch))


@final
@dataclass(frozen=True)
class Sampler:
    """A deterministic epoch shuffler without state.

    Args:
        n: Number of rows of the data set.
        batch: Rows per step over all ranks; may exceed `n`.
        seed: Names the order; equal seeds give equal batches on every machine.

    Raises:
        DataError: If `n` or `batch` is not positive.

    Example:
        >>> sampler = Sampler(n=6, batch=4, seed=1)
        >>> sorted(torch.cat([sampler.at(k) for k in range(3)])[:6].tolist())
        [0, 1, 2, 3, 4, 5]
    """

    n: int
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch < 1:
            raise DataError(
                f"expected n >= 1 and batch >= 1; got n={self.n}, batch={self.batch}; "
                "check that the data set is not empty"
            )

    def at(self, step: int) -> Tensor:
        """Rows of one step; a rank takes its part with `sampler.at(step)[rank::ranks]`.

        Args:
            step: Number of the step, from 0.

        Returns:
            Rows (batch,), int64, on the CPU; the caller may write into it.

        Raises:
            DataError: If `step` is negative.
        """
        if step < 0:
            raise DataError(f"expected step >= 0; got {step}; steps count from the start of a run")
        return torch.cat(self._pieces(step * self.batch, (step + 1) * self.batch))

    def _pieces(self, start: int, stop: int) -> list[Tensor]:
        """Positions start..stop-1 of the endless line, one piece per epoch touched."""
        epochs = range(start // self.n, (stop - 1) // self.n + 1)
        return [
            _permutation(self.n, self.seed, e)[max(start - e * self.n, 0) : stop - e * self.n]
            for e in epochs
        ]
