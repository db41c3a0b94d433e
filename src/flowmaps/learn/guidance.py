r"""Classifier-free guidance folded into the map while it learns, with a fixed scale or the scale as an input.

The guided field is $v_g = b(x|\varnothing) + w\,(b(x|c) - b(x|\varnothing))$, w = 1 switches guidance off. From a teacher it is
evaluated as it stands. From data only the conditional velocity $v_c$ is known, and the student stands in for the rest:

$$ v_g = v_c + (1 - 1/w)\,\big(u(x,s,s|c) - u(x,s,s|\varnothing)\big), $$

whose fixed point $u = v_g$ is the guided field of scale w (Geng et al. 2025, improved MeanFlow, arXiv:2512.02012, sec. 4.2;
it is MeanFlow's $\omega v_c + \kappa u(c) + (1-\omega-\kappa) u(\varnothing)$ with $\omega = 1$, $\kappa = 1-1/w$).
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..core.shape import like
from ..errors import RecipeError
from .times import Fixed, Law


@final
@dataclass(frozen=True)
class Guidance:
    """Guidance baked into a class-conditional map.

    Attributes:
        classes: Number of classes; the label `classes` means "no class".
        scale: Law of the scale per row: `Fixed(2.0)` bakes one scale in, another law makes the scale an input of the
            network (`scale`), so that it is chosen when sampling.
        dropout: Share of the rows whose label is dropped; they are not guided.
        low: Guidance acts on source times in [low, high].
        high: See `low`.
    """

    classes: int
    scale: Law = Fixed(1.0)
    dropout: float = 0.1
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise RecipeError(f"guidance needs labelled data, classes >= 1; got {self.classes}")
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
        """Whether nothing is guided: labels are dropped, so that a sampler can guide, and that is all."""
        return isinstance(self.scale, Fixed) and self.scale.value == 1.0

    def draw(
        self, cond: dict[str, Tensor], n: int, generator: Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The conditioning of a step, with some labels dropped, and the scale of every row (1 where dropped).

        Raises:
            RecipeError: If the data has no labels.
        """
        if "label" not in cond:
            raise RecipeError("guidance needs labelled data, but the batch has no `label`")
        dropped = torch.rand(n, generator=generator) < self.dropout
        scale = torch.where(dropped, 1.0, self.scale(n, generator))
        cond = cond | {"label": torch.where(dropped, self.classes, cond["label"])}
        return (cond | {"scale": scale} if self.conditioned else cond), scale

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
        null = cond | {"label": torch.full_like(cond["label"], self.classes)}
        return null | {"scale": torch.ones_like(cond["scale"])} if "scale" in cond else null
