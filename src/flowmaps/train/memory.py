"""Rows of the steps before, for recipes that pool velocities over more data than a batch has (`Recipe.memory`)."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import final

from torch import Tensor

from ..learn.pooled import Kept, kept, together

LIMIT = 2**25
"""Bytes of samples at most: of large samples fewer rows are remembered, for a step multiplies all of them with its own."""


@final
class Memory:
    """What the last steps read, in their order; where a run goes on it is read again, so it is the same bit for bit.

    It is full from the first step on: what did not come before is read from steps far ahead. So all steps have one shape, and are
    compiled once.

    Args:
        rows: How many rows to keep, rounded up to whole steps; fewer where they are more than `LIMIT` bytes.
        batch: Rows of a step.
        read: Samples of a step, and what they were told.
    """

    def __init__(
        self, rows: int, batch: int, read: Callable[[int], tuple[Tensor, Mapping[str, Tensor]]]
    ) -> None:
        self.steps, self.read = -(-rows // batch), read
        self.kept: deque[Kept] = deque()

    def before(self, step: int, change: Callable[[Tensor], Tensor]) -> Kept | None:
        """The rows before a step, changed at random as the batch is, so that they have its law; None if there are none."""
        if not self.kept:
            # beyond all steps whose memory they are in: a row's own sample may not come twice
            ahead = 2 * self.steps
            for k in range(step - self.steps, step):
                self.add(*self.read(k if k >= 0 else k + ahead))
        if not self.kept:
            return None
        found = together(self.kept)
        return found._replace(x=change(found.x))

    def add(self, x_0: Tensor, cond: Mapping[str, Tensor]) -> None:
        """Remember the rows of a step, and forget the oldest."""
        self.steps = min(self.steps, LIMIT // x_0.nbytes)
        if self.steps:
            self.kept.append(kept(x_0, cond))
        while len(self.kept) > self.steps:
            self.kept.popleft()
