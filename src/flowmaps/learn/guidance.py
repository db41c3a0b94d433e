r"""Classifier-free guidance folded into the map while it learns, with a fixed scale or the scale as an input.

The guided field is $v_g = b(x|\varnothing) + w\,(b(x|c) - b(x|\varnothing))$, w = 1 switches guidance off. From a teacher it is
evaluated as it stands. From data only the conditional velocity $v_c$ is known, and the student stands in for the rest:

$$ v_g = v_c + (1 - 1/w)\,\big(u(x,s,s|c) - u(x,s,s|\varnothing)\big), $$

whose fixed point $u = v_g$ is the guided field of scale w (Geng et al. 2025, improved MeanFlow, arXiv:2512.02012, sec. 4.2;
it is MeanFlow's $\omega v_c + \kappa u(c) + (1-\omega-\kappa) u(\varnothing)$ with $\omega = 1$, $\kappa = 1-1/w$).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..core.shape import like, spread
from ..errors import RecipeError
from .times import Fixed, Law


@final
@dataclass(frozen=True)
class Guidance:
    """Guidance baked into a conditional map.

    Attributes:
        null: What stands for "nothing is told", by the name of the condition: `{"label": 10}` for ten classes, or one row
            of embeddings. `flowmaps.data.nulls` gives it for a data set.
        scale: Law of the scale per row: `Fixed(2.0)` bakes one scale in, another law makes the scale an input of the
            network (`scale`), so that it is chosen when sampling.
        dropout: Share of the rows whose conditions are dropped; they are not guided.
        low: Guidance acts on source times in [low, high].
        high: See `low`.
    """

    null: Mapping[str, Tensor | float]
    scale: Law = Fixed(1.0)
    dropout: float = 0.1
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.null:
            raise RecipeError("guidance needs conditional data, such as labelled data; got none")
        if isinstance(self.scale, Fixed) and self.scale.value <= 0:
            raise RecipeError(f"a guidance scale is positive, 1 is off; got {self.scale.value}")
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"dropout is a share in [0, 1); got {self.dropout}")

    @property
    def conditioned(self) -> bool:
        """Whether the scale is an input of the network."""
        return not isinstance(self.scale, Fixed)

    @property
    def off(self) -> bool:
        """Whether nothing is guided: conditions are dropped, so that a sampler can guide, and that is all."""
        return isinstance(self.scale, Fixed) and self.scale.value == 1.0

    def draw(
        self, cond: dict[str, Tensor], n: int, generator: Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The conditioning of a step, with some rows dropped, and the scale of every row (1 where dropped).

        Raises:
            RecipeError: If the data lack what is to be dropped.
        """
        missing = [name for name in self.null if name not in cond]
        if missing:
            raise RecipeError(f"guidance drops the conditions {missing}, but the batch has no such")
        dropped = torch.rand(n, generator=generator) < self.dropout
        scale = torch.where(dropped, 1.0, self.scale(n, generator))
        nothing = self._null(cond)
        cond = cond | {
            name: torch.where(like(dropped, cond[name]), nothing[name], cond[name])
            for name in self.null
        }
        return (cond | {"scale": scale} if self.conditioned else cond), scale

    def dropped(self, cond: Mapping[str, Tensor]) -> Tensor:
        """Rows (B,) that are told nothing."""
        null = self._null(dict(cond))
        same = [
            (cond[name] == null[name]).reshape(len(cond[name]), -1).all(1) for name in self.null
        ]
        return torch.stack(same).all(0)

    def conditional(
        self, student: FlowMap, v: Tensor, x: Tensor, s: Tensor, cond: dict[str, Any], scale: Tensor
    ) -> Tensor:
        """$v_g$ from the conditional velocity `v` (B, *D) and the student's own pair of predictions at (x, s)."""
        with_label = student.velocity(x, s, **cond)
        without = student.velocity(x, s, **self._null(cond))
        return v + like(1 - 1 / self._active(s, scale), v) * (with_label - without)

    def teacher(
        self, teacher: FlowMap, x: Tensor, t: Tensor, cond: dict[str, Any], scale: Tensor
    ) -> Tensor:
        """The guided velocity (B, *D) of a teacher that was trained with dropped labels."""
        plain = {key: value for key, value in cond.items() if key != "scale"}
        with_label = teacher.velocity(x, t, **plain)
        if self.off:
            return with_label
        without = teacher.velocity(x, t, **self._null(plain))
        return without + like(self._active(t, scale), x) * (with_label - without)

    def _active(self, t: Tensor, scale: Tensor) -> Tensor:
        return torch.where((t >= self.low) & (t <= self.high), scale, 1.0)

    def _null(self, cond: dict[str, Any]) -> dict[str, Any]:
        null = cond | {
            name: spread(row, cond[name]).to(cond[name].dtype) for name, row in self.null.items()
        }
        return null | {"scale": torch.ones_like(cond["scale"])} if "scale" in cond else null
