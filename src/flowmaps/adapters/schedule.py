r"""What a diffusers scheduler says of a model: its path, the meaning of its output, its timesteps and its sampling grid.

Three families cover what diffusers ships. A table of $\bar\alpha_n$ (DDPM, DDIM, PNDM, Euler, Heun, DPM-Solver++, UniPC, LCM,
TCD, ...: they differ in how they step, not in the path) becomes `tabulated`; flow matching is the linear path, whatever the
`shift`, which moves the grid and not the field; EDM with unit data variance is the trig path (StableAudio's cosine
DPM-Solver++). Karras, exponential and shifted grids belong to sampling: `grid` reads them off the scheduler.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ..core.interpolant import Interpolant, linear, trig
from ..core.parametrization import Average, Denoised, EDMTwoTime, Parametrization
from ..errors import AdapterError
from .table import tabulated

NEEDS = "pass scheduler= one with a table alphas_cumprod (DDPMScheduler(...)), a flow-matching one, or EDM's with sigma_data=1"


@final
@dataclass(frozen=True)
class Schedule:
    """A path with what a model was told of it.

    Attributes:
        path: The path that the model was trained on.
        parametrization: How its output is read.
        timestep: From times in [0, 1] to the scheduler's timesteps.
        horizon: Timesteps per unit of time.
        scheduler: Where all this was read.
    """

    path: Interpolant
    parametrization: Parametrization
    timestep: Callable[[Tensor], Tensor]
    horizon: float
    scheduler: Any

    def grid(self, steps: int) -> Tensor:
        """The scheduler's own sampling grid (steps + 1,), float64, from noise to its last time (0, or its first timestep)."""
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(steps)
        ratios = getattr(scheduler, "sigmas", None)
        if ratios is not None and len(ratios) > steps:
            ratios = torch.unique_consecutive(
                torch.as_tensor(ratios).double()
            )  # Heun's are doubled
            return ratios if self.path.name == "linear" else self.path.time_at(-ratios.log())
        times = (
            torch.as_tensor(scheduler.timesteps).unique_consecutive().double() + 1
        ) / self.horizon
        clean = float(getattr(scheduler, "final_alpha_cumprod", 1.0)) == 1.0
        return torch.cat([times, times.new_tensor([0.0 if clean else 1 / self.horizon])])


def schedule(scheduler: Any, prediction: str | None = None) -> Schedule:
    """Read a diffusers scheduler.

    Args:
        scheduler: Any scheduler with a table of alphas, a flow-matching one, or EDM's with unit data variance.
        prediction: "epsilon", "v_prediction", "sample" or "flow_prediction"; by default as the scheduler's config says.

    Raises:
        AdapterError: If the scheduler's path is not known, or the prediction says nothing somewhere on it.
    """
    name, config = type(scheduler).__name__, scheduler.config
    kind = prediction or config.get("prediction_type")
    if name.startswith("FlowM") or config.get("use_flow_sigmas") or kind == "flow_prediction":
        if kind not in (
            None,
            "flow_prediction",
            "epsilon",
        ):  # a flow scheduler inherits "epsilon" as a default
            raise AdapterError(
                f"{name} is a flow-matching scheduler, whose models predict the flow; got prediction {kind!r}"
            )
        horizon = float(config["num_train_timesteps"])
        return Schedule(linear(), Average(), lambda t: horizon * t, horizon, scheduler)
    if config.get("sigma_data") == 1.0 and kind == "v_prediction" and "Cosine" in name:
        return Schedule(trig(), EDMTwoTime(trig()), lambda t: t, 1.0, scheduler)
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None or config.get("sigma_data") is not None:
        raise AdapterError(f"the noise schedule of {name} is not known: {NEEDS}")
    path, steps = tabulated(table), len(table)
    return Schedule(
        path, _reading(path, kind, name), lambda t: _trained(t, steps), float(steps), scheduler
    )


def _reading(path: Interpolant, kind: str | None, name: str) -> Parametrization:
    if kind == "epsilon":
        if path.settings["last"] <= 0:
            raise AdapterError(
                f"{name} has zero terminal SNR, where a prediction of noise (epsilon) says nothing of the data; "
                "such models predict v: pass prediction='v_prediction' if yours does"
            )
        return Denoised(path, "eps")
    if kind == "sample":
        return Denoised(path, "x0")
    if kind == "v_prediction":
        return EDMTwoTime(path)  # with unit variance both are v = alpha eps - sigma x_0
    raise AdapterError(
        f"{name} has prediction_type {kind!r}; known are epsilon, v_prediction, sample and flow_prediction: pass prediction="
    )


def _trained(t: Tensor, steps: int) -> Tensor:
    """The timestep n of time (n+1)/N, and the very integer where rounding is all that keeps it from one; -1 is clean data."""
    n = steps * t - 1
    off = (n.round() - n).detach()
    return n + torch.where(off.abs() < 2 * steps * torch.finfo(t.dtype).eps, off, 0.0)
