r"""Rules about the network's own output, where a mean velocity is not what is compared.

Trig     F(x, s, t), the raw output on the trigonometric path, against its tangent      (sCM, rCM)
Towards  u(x, s, t) against the conditional velocity, to be read as an image            (pixel MeanFlow's perceptual loss)
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..core.autodiff import EXACT, Derivative, along_source
from ..core.flow_map import FlowMap, NetFlowMap
from ..core.interpolant import trig
from ..core.parametrization import EDMTwoTime
from ..core.shape import like
from ..errors import RecipeError
from .ramps import Ramp
from .rules import Models, Points, VelocitySource


@final
@dataclass(frozen=True)
class Trig:
    r"""The Eulerian rule of $X = \cos\vartheta\,x - \sin\vartheta\,F$ on the output F.

    Angles are $\theta = \pi s/2$ and $\vartheta = \theta_s-\theta_t$. The target is $\mathrm{sg}[F + g]$ with the tangent

    $$g = -a\,(F - \dot x) - r\cos\vartheta\sin\vartheta\,(x + \mathrm{d}F/\mathrm{d}\theta), \qquad
      a = \cos^2\vartheta,\quad \dot x = \mathrm{d}x/\mathrm{d}\theta,$$

    which is $\cos\vartheta\,\mathrm{d}X/\mathrm{d}\theta$ at r = 1. The factor keeps it finite in pure noise, where it is 0: at
    $\vartheta = \pi/2$ the rule says nothing.

    Attributes:
        velocity: Who gives $\dot x$: "conditional" (sCT) or "teacher" (sCD).
        derivative: Exact, finite, or "semi" (rCM's remedy for steep embeddings of time).
        warmup: r; at r = 0 the output is regressed on the velocity of the path.
        steep: Take $a = \cos\vartheta\sqrt{1-r^2\sin^2\vartheta}$ (rCM): more weight near noise while r < 1, the same at r = 1.

    Raises:
        RecipeError: For a student that is not a network under `EDMTwoTime` on the trig path.

    Source:
        Lu & Song 2025 (arXiv:2410.11081), Algorithm 1; Zheng et al. 2025 (rCM, arXiv:2510.08431) for `steep`.
    """

    velocity: VelocitySource = "conditional"
    derivative: Derivative = EXACT
    warmup: Ramp | None = None
    steep: bool = False

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        reading = f.parametrization if isinstance(f, NetFlowMap) else None
        if (
            not (isinstance(f, NetFlowMap) and isinstance(reading, EDMTwoTime))
            or f.interpolant != trig()
        ):
            raise RecipeError(
                "the trig rule compares outputs of a network that is read through EDMTwoTime(trig()); give the recipe "
                "interpolant=trig() and parametrization=trig_two_time()"
            )
        sigma = reading.sigma_data
        s, _, t = b.times
        rate = math.pi / 2
        v = models.velocity(self.velocity, b.x, s, b) / rate
        out, slope = along_source(
            lambda x, s, t: sigma * f.output(x, s, t, **b.cond),
            b.x,
            s,
            t,
            rate * v,
            derivative=self.derivative,
        )
        cos, sin = (like(fn(rate * (s - t)), v) for fn in (torch.cos, torch.sin))
        r = 1.0 if self.warmup is None else self.warmup(b.progress)
        near = cos * torch.sqrt(1 - (r * sin) ** 2) if self.steep else cos.square()
        held = out.detach()
        g = near * (v - held) - r * cos * sin * (b.x + slope / rate)
        return out, (held + g).detach()


@final
@dataclass(frozen=True)
class Towards:
    """The mean velocity against the conditional velocity, whatever the jump: read in the space `AtData`, image against data.

    No characterisation of the map: off the diagonal its minimum is the velocity, so it only accompanies a rule, under a
    metric that forgives what a blurred image lacks (`Perceptual`).

    Source:
        Lu et al. 2026 (pixel MeanFlow, arXiv:2601.22158).
    """

    def __call__(self, f: FlowMap, b: Points, models: Models) -> tuple[Tensor, Tensor]:
        s, _, t = b.times
        return f.mean_velocity(b.x, s, t, **b.cond), b.v
