r"""Learned restorers: one kind of measurement $y = A(m\odot x)+\sigma n$ is learned once, then restoring costs one or two jumps.

    VFM      a Gaussian posterior of the noise, q(z | y): a draw is one jump of the map from a noise that fits
    CoSIGN   a branch beside the frozen map that sees y, and a projection onto what was measured after each jump

Both learn by the one loop, from data that tell how they were seen (`flowmaps.data.measured.Measured`); both are maps with more
conditions, `back` = $A^\top y$, `seen` = m and `sigma` (`told` says them of a `Measurement`), and restore by `restore`:

    learned = Adapted(flow_map.requires_grad_(False), GaussianNoise(net))
    fit(vfm(operator), learned, Measured(data, sigma, operator), run)
    restore(learned, y, operator, sigma, shape=shape, method=VFM(), draws=8, generator=generator)
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, linear
from ..core.shape import as_time, like
from ..errors import ControlError
from ..learn.objective import Recipe, Term
from ..learn.rules import Models, Points, VelocitySource
from ..learn.states import Prior
from ..learn.times import Fixed, ToData, Uniform
from .budget import Budget
from .conditions import normal, prior_scale
from .operators import Mask, Measurement, Operator
from .restorers import Problem
from .tune_rules import Signed

TOLD = ("back", "seen", "sigma")
"""Names of what a learned restorer is told of a measurement."""


def told(measured: Measurement, x: Tensor) -> dict[str, Tensor]:
    """What a learned restorer is told of measurements of points like `x` (B, *D), as `Measured` tells it of data."""
    whole = torch.ones_like(x)
    seen = measured.operator(whole) if isinstance(measured.operator, Mask) else whole
    sigma = torch.full((len(x),), measured.sigma, dtype=x.dtype, device=x.device)
    return {"back": measured.back(measured.y, x), "seen": seen, "sigma": sigma}


def _stacked(back: Tensor, seen: Tensor, sigma: Tensor) -> Tensor:
    """What a network looks at: three samples side by side, along the first axis of a sample."""
    level = like(sigma.log(), back).expand_as(back)
    return torch.cat([back, seen.to(back), level.to(back)], 1)


class NoiseLaw(NamedTuple):
    """A Gaussian law of noise in units of the prior, for every row.

    Attributes:
        mean: (B, *D).
        factor: Deviations (B, *D), or factors F (B, d, d) with positive diagonals, lower triangular: covariances are F F^T.
    """

    mean: Tensor
    factor: Tensor

    @property
    def _dense(self) -> bool:
        return self.factor.shape != self.mean.shape

    def __call__(self, eps: Tensor) -> Tensor:
        """A draw (B, *D) from standard normal numbers (B, *D)."""
        if not self._dense:
            return self.mean + self.factor * eps
        return self.mean + (self.factor @ eps.flatten(1)[..., None]).reshape(eps.shape)

    def divergence(self) -> Tensor:
        r"""$KL(q\,\|\,N(0, I)) = \tfrac12(|\mu|^2+|F|^2-d)-\log\det F$, (B,)."""
        size = self.mean.flatten(1).square().sum(1) + self.factor.flatten(1).square().sum(1)
        scales = self.factor.diagonal(dim1=1, dim2=2) if self._dense else self.factor.flatten(1)
        return 0.5 * (size - self.mean[0].numel()) - scales.log().sum(1)


@final
class GaussianNoise(nn.Module):
    """The default q: independent coordinates, whose means and log-deviations a network reads off the measurement.

    Args:
        net: Network `net(h, s, t, **cond)` of three samples side by side: for samples (C, ...) one of `flowmaps.nets` with
            shape (3 C, ...). These start at zero, so that q starts at the prior.
    """

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net

    def forward(self, back: Tensor, seen: Tensor, sigma: Tensor, **cond: Any) -> NoiseLaw:
        """The law of the noise, given what is told."""
        one = torch.ones_like(sigma)
        mean, scale, _ = self.net(_stacked(back, seen, sigma), one, one, **cond).chunk(3, 1)
        return NoiseLaw(mean, scale.exp())


@final
class Adapted(FlowMap):
    """A flow map, and a law of its noise given a measurement. As a map it is `base`, whatever is told.

    Args:
        base: The map; freeze it, or learn it too (`vfm(recipe=...)`).
        noise: q: from `back`, `seen` and `sigma`, by name, and the map's own conditions to a `NoiseLaw`.
    """

    def __init__(self, base: FlowMap, noise: Callable[..., NoiseLaw]) -> None:
        super().__init__()
        self.base, self.noise = base, noise
        self.interpolant, self.to_data = base.interpolant, base.to_data

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.base.mean_velocity(x, s, t, **_untold(cond))

    def draw(self, eps: Tensor, **cond: Any) -> tuple[Tensor, NoiseLaw]:
        """Data (B, *D) from standard normal numbers, by one jump from a noise of the law, and that law."""
        law = self.noise(**cond)
        z = prior_scale(self.interpolant) * law(eps)
        return self.base(z, 1.0, 0.0, **_untold(cond)), law

    def watched(self, budget: Budget) -> "Adapted":
        """The same, counted: a draw is a call of q and one of the map."""

        def noise(**cond: Any) -> NoiseLaw:
            law = self.noise(**cond)
            return NoiseLaw(budget.called(law.mean, "forward", "backward"), law.factor)

        return Adapted(budget.watch(self.base), noise)


@final
class Branched(FlowMap):
    """A flow map and a branch that sees a measurement: mean velocities add. Told nothing, it is the map.

    Args:
        base: The map; frozen.
        branch: Network `branch(h, s, t, **cond)` of four samples side by side, the point and what is told; of what it says the
            first sample counts. For samples (C, ...) one of `flowmaps.nets` with shape (4 C, ...), which starts at zero: then
            the map is `base` before training, as with a ControlNet.
    """

    def __init__(self, base: FlowMap, branch: Callable[..., Tensor]) -> None:
        super().__init__()
        self.base, self.branch = base, branch
        self.interpolant, self.to_data = base.interpolant, base.to_data

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        rest = _untold(cond)
        u = self.base.mean_velocity(x, s, t, **rest)
        if len(rest) == len(cond):
            return u
        h = torch.cat([x, _stacked(*(cond[name] for name in TOLD)).to(x)], 1)
        return u + self.branch(h, s, t, **rest)[:, : x.shape[1]]

    def watched(self, budget: Budget) -> "Branched":
        """The same, counted: a call is one of the map and one of the branch."""

        def branch(h: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return budget.called(self.branch(h, s, t, **cond), "forward", "backward", "jvp")

        return Branched(budget.watch(self.base), branch)


def _untold(cond: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in cond.items() if name not in TOLD}


@final
@dataclass(frozen=True)
class Evidence:
    r"""Minus the evidence bound of a measurement, per coordinate (B, 1); the student is `Adapted`, the points are noise.

    $$ -\log p(y) \le E_{q(z|y)}\frac{|y-A(m\odot X(z,1,0))|^2}{2\sigma^2} + KL(q(z|y)\,\|\,N(0,I)) + \mathrm{const}, $$

    and the gap is $KL(q\,\|\,p(z|y))$. Of y the square needs $A^\top y$ only; its $|y|^2/2\sigma^2$ is left out.

    Attributes:
        operator: A, without the mask.
    """

    operator: Operator

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        if not isinstance(f, Adapted):
            raise ControlError(
                f"vfm learns a law of the noise beside a map: train Adapted(flow_map, GaussianNoise(net)); got {type(f).__name__}"
            )
        x_0, law = f.draw(b.x / prior_scale(f.interpolant), **b.cond)
        back, seen, sigma = (b.cond[name] for name in TOLD)
        square = self.operator(seen * x_0).flatten(1).square().sum(1)
        misfit = (0.5 * square - (back * x_0).flatten(1).sum(1)) / sigma.square()
        loss = (misfit + law.divergence())[:, None] / b.x[0].numel()
        return loss, torch.zeros_like(loss)


@final
@dataclass(frozen=True)
class Recover:
    """The end of the student's jump against the clean data: its minimum is their mean, given the point and what is told."""

    velocity: VelocitySource = "conditional"

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        x_0, _ = f.interpolant.endpoints(b.v, b.x, b.times.s, "velocity")
        return f(b.x, b.times.s, b.times.t, **b.cond), x_0


def vfm(
    operator: Operator, *, recipe: Recipe | None = None, path: Interpolant | None = None
) -> Recipe:
    r"""Learn the posterior of the noise by its evidence bound; with a recipe, the map along with it (Variational Flow Maps).

    With an exact map and linear-Gaussian data the optimum is the posterior; else it is the Gaussian of the noise that is nearest
    to it in $KL(q\,\|\,p)$, which is too narrow rather than too wide.

    Args:
        operator: A of the measurements; of masks the identity.
        recipe: How the map goes on learning from the data, on its own path; by default it is frozen (`requires_grad_(False)`).
        path: The map's, without a recipe; linear by default.

    Source:
        Mammadov et al. 2026 (arXiv:2603.07276). Deviation: jointly with a map, its own recipe anchors it, and there is no second
        likelihood of x itself.
    """
    noise = ToData(Fixed(1.0))
    term = Term(
        rule=Evidence(operator), times=noise, metric=Signed(), state=Prior(), name="evidence"
    )
    cite = ("mammadov2026vfm",)
    if recipe is None:
        return Recipe(name="vfm", cite=cite, terms=(term,), interpolant=path or linear())
    return replace(recipe, name="vfm", cite=cite + recipe.cite, terms=(term, *recipe.terms))


def cosign(*, recipe: Recipe | None = None, path: Interpolant | None = None) -> Recipe:
    """Learn a branch beside a frozen map, from data and how they were seen (CoSIGN).

    By default clean data are regressed on, half of the time from pure noise: the jump's end becomes the mean of what can have been
    measured, which is the best single restoration and no draw. Any other recipe that learns from data makes the branched map
    the flow map *of the posterior*: its jumps are draws.

    Args:
        recipe: Another way to learn, on the map's path.
        path: The map's, without a recipe; linear by default.

    Source:
        Zhao et al. 2024 (arXiv:2407.12676), the loss "recon" of their code. Deviations: squares instead of LPIPS; the branch adds
        to the velocity and not to every layer.
    """
    cite = ("zhao2024cosign",)
    if recipe is not None:
        return replace(recipe, name="cosign", cite=cite + recipe.cite)
    terms = (
        Term(rule=Recover(), times=ToData(Fixed(1.0)), share=0.5, name="from noise"),
        Term(rule=Recover(), times=ToData(Uniform()), share=0.5, name="from between"),
    )
    return Recipe(name="cosign", cite=cite, terms=terms, interpolant=path or linear())


@final
@dataclass(frozen=True)
class VFM:
    """Independent draws of a learned posterior of the noise, a call of its network and one jump each. The map is `Adapted`."""

    def __call__(self, problem: Problem) -> Tensor:
        f = problem.flow_map
        if not isinstance(f, Adapted):
            raise ControlError(
                "VFM restores with the map that it learned, an Adapted one; for any other map take NoisePosterior"
            )
        eps = problem.noise / prior_scale(f.interpolant)
        return f.draw(eps, **problem.cond, **told(problem.seen, eps))[0]


@final
@dataclass(frozen=True)
class CoSIGN:
    r"""Jumps of a map that sees the measurement (`Branched`), each followed by the projection onto $\{x: Ax=y\}$; noised between.

    Attributes:
        steps: Jumps, 1 or 2 in the paper.
        scale: None projects. Where the noise is not small, the deviation of the data: what comes out is then moved towards the
            measurement as `PlugAndPlay` does, as far as $\sigma$ says.
        iterations: CG iterations of the projection at most.
    """

    steps: int = 1
    scale: float | None = None
    iterations: int = 30

    def __post_init__(self) -> None:
        if min(self.steps, self.iterations) < 1 or (self.scale is not None and self.scale <= 0):
            raise ControlError(
                f"CoSIGN needs steps and iterations of at least 1, and scale > 0 or None; got {self}"
            )

    def __call__(self, problem: Problem) -> Tensor:
        f, x, x_0 = problem.flow_map, problem.noise, problem.noise
        if not isinstance(f, Branched):
            raise ControlError(
                "CoSIGN restores with a map that sees measurements, a Branched one; for any other map take PlugAndPlay"
            )
        cond = {**problem.cond, **told(problem.seen, x)}
        times = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64).tolist()
        for s, t in itertools.pairwise(times):
            ahead, source = f(x, s, 0.0, **cond), as_time(s, x)
            if self.scale is None:
                x_0 = problem.seen.projected(ahead, self.iterations)
            else:
                spread = problem.spread(source, self.scale)
                x_0 = problem.seen.nearest(ahead, spread, self.iterations)
            c = f.interpolant.at(as_time(t, x), x)
            x = c.alpha * x_0 + c.sigma * normal(x, problem.generator)
        return x_0
