r"""The words of reward fine-tuning: samples of a policy (states), advantages, and the rules that learn from them.

A tuning is a `Recipe`, so the one loop trains it. Its points are not on the path of data but on the path of samples: a policy
jumps from noise to $x_0$, fresh noise brings $x_0$ to the source time, and with them comes the conditional velocity
$v = \dot\alpha x_0 + \dot\sigma\varepsilon$. So every rule that learns from data learns from samples, and a reward of $x_0$ says
how much.

    FromSelf, FromPolicy, FromBase    samples of the student, of its moving average (the sampling policy), of the teacher (the base)
    Climb                             the reward itself, through the jumps
    NFT                               towards samples that are better than their group, away from those that are worse
    Weighted                          any rule, with weights exp(r): it learns the tilt p(x) exp(r(x))
    Stay                              where the teacher jumps: an anchor
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor

from ..core.autodiff import EXACT, Derivative, along_source
from ..core.flow_map import FlowMap
from ..core.shape import like
from ..errors import ControlError
from ..learn.rules import MapSource, Models, Points, Rule, VelocitySource
from .rewards import Reward, scored


@dataclass(frozen=True)
class Rollout:
    """Samples of a policy, noised again: points with a conditional velocity, detached.

    Attributes:
        jumps: Jumps of the policy, equal in time.
        group: So many neighbouring rows are told the same (the condition of the first): rewards are compared within a group.

    Raises:
        ControlError: If one of them is less than 1.
    """

    jumps: int = 1
    group: int = 1
    source: ClassVar[MapSource | None] = "self"
    conditional: ClassVar[bool] = True
    knows_end: ClassVar[bool] = False
    fresh: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.jumps, self.group) < 1:
            raise ControlError(
                f"a rollout makes jumps >= 1 for groups >= 1; got {self.jumps} and {self.group}"
            )

    @property
    def at_noise(self) -> bool:
        return False

    @torch.no_grad()
    def __call__(self, f: FlowMap, b: Points, models: Models) -> Points:
        first = torch.arange(len(b.x), device=b.x.device) // self.group * self.group
        cond = {key: value[first] for key, value in b.cond.items()} if self.group > 1 else b.cond
        b = replace(b, cond=cond)
        source, s, x = cast("MapSource", self.source), b.times.s, b.x
        for a, c in itertools.pairwise(_falling(self.jumps, s)):
            x = x + like(c - a, x) * models.jump(source, x, a, c, b)
        x, v = f.interpolant.sample(x, b.v, s)
        return replace(b, x=x, v=v)


@final
@dataclass(frozen=True)
class FromSelf(Rollout):
    """Of the student as it is."""


@final
@dataclass(frozen=True)
class FromPolicy(Rollout):
    """Of the student's moving average (`Recipe.ema_target`): a policy that changes slowly."""

    source: ClassVar[MapSource | None] = "ema"


@final
@dataclass(frozen=True)
class FromBase(Rollout):
    """Of the teacher: the base, or what it was replaced by (`Recipe.refresh`)."""

    source: ClassVar[MapSource | None] = "teacher"


@final
@dataclass(frozen=True)
class Advantage:
    r"""How much better a sample is than others of its condition: $(r - \bar r_{group})/\sigma$, cut to $\pm$ `clip`.

    A group are the rows of a batch that are told the same; without conditions that is the batch. $\sigma$ is the deviation from
    the group's mean, pooled over the batch (so that small groups do not shout), and a group of one has advantage 0. A
    forbidden sample (-inf) counts as the worst of the batch.

    Attributes:
        reward: Any callable; no gradient is asked for.
        clip: Bound in deviations.

    Source:
        Zheng et al. 2025 (DiffusionNFT), NVlabs/DiffusionNFT; Liu et al. 2025 (Flow-GRPO).
    """

    reward: Reward
    clip: float = 5.0

    def __call__(self, x_0: Tensor, cond: dict[str, Any]) -> Tensor:
        """Advantages (B,) of samples (B, *D)."""
        off = centred(_finite(scored(self.reward, x_0)), cond)
        spread = off.square().mean().sqrt()
        scale = torch.where(spread > 1e-6 * off.abs().max().clamp(min=1e-6), spread, torch.inf)
        return (off / scale).clamp(-self.clip, self.clip)


def centred(r: Tensor, cond: dict[str, Any]) -> Tensor:
    """Rewards (B,) without the mean of their group: what of them is not the condition's doing.

    Example:
        >>> centred(torch.tensor([1.0, 3.0, 5.0]), {"label": torch.tensor([0, 0, 1])})
        tensor([-1.,  1.,  0.])
    """
    group = groups(cond, len(r)).to(r.device)
    zero = torch.zeros(int(group.max()) + 1, dtype=r.dtype, device=r.device)
    count = zero.index_add(0, group, torch.ones_like(r))
    return r - (zero.index_add(0, group, r) / count)[group]


def groups(cond: dict[str, Any], n: int) -> Tensor:
    """The number of the group (n,) that each row belongs to: rows that are told the same are one.

    Example:
        >>> groups({"label": torch.tensor([3, 7, 3, 1])}, 4)
        tensor([1, 2, 1, 0])
    """
    told = [value.reshape(n, -1).double() for value in cond.values() if isinstance(value, Tensor)]
    if not told:
        return torch.zeros(n, dtype=torch.long)
    return torch.unique(torch.cat(told, 1), dim=0, return_inverse=True)[1]


@final
@dataclass(frozen=True)
class NFT:
    r"""DiffusionNFT and MeanFlowNFT: learn what is better than average, unlearn what is worse, from samples and rewards.

    A network of mean velocities is read as a velocity, $V(x,s,t) = u - (t-s)\,\frac{d}{ds}u_{old}$, the derivative along v and
    detached (at t = s it is the velocity: DiffusionNFT). With $q = \frac12(1 + A/c) \in [0,1]$ of the advantage A cut to c,

    $$ L = q\,\frac{|\hat x_+-x_0|^2}{w_+} + (1-q)\,\frac{|\hat x_--x_0|^2}{w_-} + \mathrm{kl}\,|V-V_{base}|^2,\qquad
       V_\pm = V_{old} \pm \beta\,(V-V_{old}), $$

    where $\hat x_\pm$ is the clean sample that a velocity implies and $w_\pm$ the mean size of $\hat x_\pm-x_0$, detached.
    Without w and kl the minimum is $u = u_{old} + \frac2\beta\,\partial_xX(x,s,t)\,\mathrm{Cov}(q, v\,|\,x)$: a step of the ODE of
    the tilt, carried along by the jump, whose Jacobian enters because the derivative is taken along v. Steps add up: without kl
    or an end, the tilt has none.

    Prediction and target are (B, 3, *D): what is liked, what is not, and the distance from the base.

    Attributes:
        advantage: Of samples.
        beta: A smaller one goes farther.
        kl: Weight of the anchor, per mean square of a coordinate.
        derivative: Of the old map.
        adaptive: Whether errors are divided by their size w.

    Source:
        Zheng et al. 2025, DiffusionNFT (arXiv:2509.16117); MeanFlowNFT (arXiv:2607.15273).
    """

    advantage: Advantage
    beta: float = 0.1
    kl: float = 1e-4
    derivative: Derivative = EXACT
    adaptive: bool = True
    velocity: ClassVar[VelocitySource] = "conditional"
    jump: ClassVar[MapSource] = "ema"
    below: ClassVar[MapSource] = "teacher"  # who anchors

    def __post_init__(self) -> None:
        if not self.beta > 0 or self.kl < 0:
            raise ControlError(f"NFT needs beta > 0 and kl >= 0; got {self.beta} and {self.kl}")

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, _, t = b.times
        x_0, _ = f.interpolant.endpoints(b.v, b.x, s, "velocity")
        liked = like(0.5 + 0.5 * self.advantage(x_0, b.cond) / self.advantage.clip, b.x)
        with torch.no_grad():
            old, base = (models.jump(who, b.x, s, t, b) for who in (self.jump, self.below))
            gap = torch.zeros_like(old) if bool((s == t).all()) else self._gap(b, models)
        new = f.mean_velocity(b.x, s, t, **b.cond)
        error, error_old = (_implied(f, b, u - gap - b.v) for u in (new, old))
        better = self.beta * error + (1 - self.beta) * error_old
        worse = (1 + self.beta) * error_old - self.beta * error
        parts = [
            self._root(better, liked),
            self._root(worse, 1 - liked),
            self.kl**0.5 * (new - base),
        ]
        found = torch.stack(parts, 1)
        return found, torch.zeros_like(found)

    def _gap(self, b: Points, models: Models) -> Tensor:
        r"""$(t-s)\,du_{old}/ds$ along the conditional velocity."""
        s, _, t = b.times

        def old(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            return models.jump(self.jump, x, s, t, b)

        slope = along_source(old, b.x, s, t, b.v, derivative=self.derivative)[1]
        return like(t - s, slope) * slope

    def _root(self, error: Tensor, share: Tensor) -> Tensor:
        """What squared is the weighted square."""
        size = error.detach().abs().flatten(1).mean(1).clamp(min=1e-5)
        return (share / like(size, share)).sqrt() * error if self.adaptive else share.sqrt() * error


@final
@dataclass(frozen=True)
class Weighted:
    r"""A rule whose rows have weights $w = e^{r(x_0)}$, relative to the mean over the batch.

    On samples of p the minimum is that of the law proportional to $p\,e^r$, exactly, for every rule that is quadratic in its
    error and linear in the conditional velocity. The mean over the batch makes an error of the order of its inverse.

    Attributes:
        rule: Learns from the conditional velocity.
        reward: In natural units; no gradient is asked for.

    Raises:
        ControlError: If the rule asks for another velocity: it would not see the weights.

    Source:
        Reward-weighted flow matching (Fan et al. 2025, arXiv:2502.06061) and the implicit step of Tilt Matching (arXiv:2512.21829).
    """

    rule: Rule
    reward: Reward
    velocity: ClassVar[VelocitySource] = "conditional"

    def __post_init__(self) -> None:
        if getattr(self.rule, "velocity", None) != "conditional":
            raise ControlError(
                f"weights tilt what is learned from samples; {type(self.rule).__name__} asks for the velocity "
                f"{getattr(self.rule, 'velocity', None)!r}, not the conditional one"
            )

    @property
    def tangent(self) -> VelocitySource | None:
        return getattr(self.rule, "tangent", None)

    @property
    def derivative(self) -> Derivative | None:
        return getattr(self.rule, "derivative", None)

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        prediction, target = self.rule(f, b, models)
        root = like(self.weights(f, b).sqrt(), prediction)
        return root * prediction, root * target

    @torch.no_grad()
    def weights(self, f: FlowMap, b: Points) -> Tensor:
        """Weights (B,) of mean 1."""
        x_0, _ = f.interpolant.endpoints(b.v, b.x, b.times.s, "velocity")
        return torch.softmax(scored(self.reward, x_0), 0) * len(x_0)


@final
@dataclass(frozen=True)
class Climb:
    """Minus the reward of where the student jumps, (B, 1), with the gradient through all of its jumps.

    With a flow map one or two jumps give the exact gradient of the sample; nothing is truncated, as it must be where samples take
    fifty steps (ReFL, DRaFT). The term's metric is `Signed`, its state `Prior`.

    Attributes:
        reward: Differentiable.
        jumps: Equal in time, from the source time to 0.
    """

    reward: Reward
    jumps: int = 1

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        x = b.x
        for a, c in itertools.pairwise(_falling(self.jumps, b.times.s)):
            x = f(x, a, c, **b.cond)
        loss = -scored(self.reward, x)[:, None]
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ControlError(
                "backprop follows the gradient of the reward, and the reward has none: it must not detach, round or "
                "convert to numpy; for a black box tune by nft or tilt"
            )
        return loss, torch.zeros_like(loss)


@final
@dataclass(frozen=True)
class Signed:
    """The mean of the difference itself, no square of it: rewards are climbed, not matched."""

    def __call__(self, prediction: Tensor, target: Tensor | float = 0.0) -> Tensor:
        return (prediction - target).flatten(1).mean(1)


@final
@dataclass(frozen=True)
class Stay:
    """The teacher's jump as it stands: $u(x,s,t)$ against $u_{base}(x,s,t)$. At t = s the velocities are anchored."""

    jump: ClassVar[MapSource] = "teacher"

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, _, t = b.times
        target = models.jump(self.jump, b.x, s, t, b)
        return f.mean_velocity(b.x, s, t, **b.cond), target.detach()


def _falling(jumps: int, s: Tensor) -> Tensor:
    """From 1 to 0 in equal steps, for every row: (jumps + 1, B)."""
    times = torch.linspace(1, 0, jumps + 1, dtype=s.dtype, device=s.device)
    return times[:, None].expand(-1, len(s)).contiguous()


def _finite(r: Tensor) -> Tensor:
    """Rewards with -inf replaced by the worst that is finite."""
    allowed = r.isfinite()
    if not bool(allowed.any()):
        raise ControlError(
            "the reward forbids every sample of the batch: nothing is left to compare"
        )
    return r.clamp(min=float(r[allowed].min()))


def _implied(f: FlowMap, b: Points, v: Tensor) -> Tensor:
    """How the clean sample moves with a change v of the velocity: the linear part of `endpoints`."""
    return f.interpolant.endpoints(v, torch.zeros_like(b.x), b.times.s, "velocity")[0]
