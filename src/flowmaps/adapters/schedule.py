# The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
r"""What a diffusers scheduler says of a model: its path, the meaning of its output, its timesteps and its sampling grid.

Three families cover what diffusers ships. A table of $\bar\alpha_n$ (DDPM, DDIM, PNDM, Euler, Heun, DPM-Solver++, UniPC, LCM,
TCD, ...: they differ in how they step, not in the path) becomes `tabulated`, and so do the noise levels of EDM's; flow matching is
the linear path, whatever the `shift`, which moves the grid and not the field; TrigFlow (SCM), and EDM's cosine with unit data
variance (StableAudio), are the trig path. Other grids belong to sampling: `grid` reads them off the scheduler.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import diffusers
import torch
from torch import Tensor

from ..core.interpolant import Interpolant, linear, trig
from ..core.parametrization import Average, Boundary, Denoised, EDMTwoTime, Parametrization
from ..errors import AdapterError
from .carried import (
    CosineEulerScheduler,
    ExponentialEulerScheduler,
    FlowMapDDIMScheduler,
    TrigFlowEulerScheduler,
)
from .table import tabulated

NEEDS = "pass scheduler= one with a table alphas_cumprod (DDPMScheduler(...)), a flow-matching one, EDM's or SCMScheduler"


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
        first: The least timestep that the model was trained on; it is told no smaller source.
    """

    path: Interpolant
    parametrization: Parametrization
    timestep: Callable[[Tensor], Tensor]
    horizon: float
    scheduler: Any
    first: float = 0.0

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
        scheduler: Any scheduler with a table of alphas, a flow-matching one, EDM's, or TrigFlow's.
        prediction: "epsilon", "v_prediction", "sample", "flow_prediction" or "trigflow"; by default as the scheduler's config says.

    Raises:
        AdapterError: If the scheduler's path is not known, or the prediction says nothing somewhere on it.
    """
    name, config = type(scheduler).__name__, scheduler.config
    kind = prediction or config.get("prediction_type")
    if name.startswith(("SCM", "TrigFlow")):
        return _trigflow(scheduler, kind, name)
    flows = name.startswith("FlowM") and not isinstance(scheduler, FlowMapDDIMScheduler)
    if flows or config.get("use_flow_sigmas") or kind == "flow_prediction":
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
    if hasattr(scheduler, "precondition_noise"):
        return _edm(scheduler, kind, name)
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None or config.get("sigma_data") is not None:
        raise AdapterError(f"the noise schedule of {name} is not known: {NEEDS}")
    path, steps = tabulated(table), len(table)
    return Schedule(
        path, _reading(path, kind, name), lambda t: _trained(t, steps), float(steps), scheduler
    )


def _trigflow(scheduler: Any, kind: str | None, name: str) -> Schedule:
    r"""TrigFlow (Lu & Song 2025, arXiv:2410.11081): the model is told the angle; points are in units of `sigma_data`.

    A flow-matching model that such a scheduler drives (Sana-Sprint) predicts the flow and is told its time in [0, 1].
    """
    if kind == "flow_prediction":
        return Schedule(linear(), Average(), lambda t: t, 1.0, scheduler)
    if kind not in ("trigflow", "v_prediction"):
        raise AdapterError(
            f"{name} is TrigFlow's scheduler, whose models predict its velocity; got prediction {kind!r}"
        )
    angle = math.pi / 2
    return Schedule(trig(), EDMTwoTime(trig()), lambda t: angle * t, angle, scheduler)


def _edm(scheduler: Any, kind: str | None, name: str) -> Schedule:
    r"""EDM (Karras et al. 2022, arXiv:2206.00364): the noise levels of the scheduler, spread over [0, 1] as over its timesteps.

    Points have variance one where data have: $x = (x_0 + \sigma\varepsilon)/\sqrt{1+\sigma^2}$. The output is $c_{out}$'s factor,
    whose sign a prediction of v turns.
    """
    config = scheduler.config
    if kind not in ("epsilon", "v_prediction"):
        raise AdapterError(
            f"{name} knows the predictions epsilon and v_prediction; got {kind!r}: pass prediction="
        )
    if config["sigma_data"] == 1.0 and kind == "v_prediction" and "Cosine" in name:
        return Schedule(trig(), EDMTwoTime(trig()), lambda t: t, 1.0, scheduler)
    levels = torch.as_tensor(type(scheduler).from_config(config).sigmas).double()
    levels = levels[levels > 0].unique()  # ascending
    path, tell = tabulated(1 / (1 + levels.square())), scheduler.precondition_noise
    least, most = (float(tell(level[None])) for level in (levels[0], levels[-1]))

    def timestep(t: Tensor) -> Tensor:
        return tell((path.sigma(t) / path.alpha(t)).clamp(min=float(levels[0])))

    sigma_data = float(config["sigma_data"]) * (1 if kind == "epsilon" else -1)
    reading = Boundary(path, sigma_data, sigma_min=0.0)
    return Schedule(path, reading, timestep, most - least, scheduler, least)


def walking(read_as: Schedule) -> Schedule:
    """The same with the scheduler of diffusers whose step, without noise or clipping, is the jump of a map on its path."""
    old, config = read_as.scheduler, dict(read_as.scheduler.config)
    if read_as.path.name == "linear":
        if type(old).__name__ == "FlowMatchEulerDiscreteScheduler":
            shift = 1.0 if config.get("use_dynamic_shifting") else config["shift"]
        else:
            shift = config.get("shift") or config.get("flow_shift") or 1.0
        new: Any = diffusers.FlowMapEulerDiscreteScheduler(
            num_train_timesteps=int(read_as.horizon), shift=shift
        )
    elif isinstance(read_as.parametrization, Boundary) or read_as.path.name == "trig":
        new = _edm_euler(read_as, config)
    else:
        kinds = {"eps": "epsilon", "x0": "sample"}
        reading = read_as.parametrization
        kind = kinds[reading.prediction] if isinstance(reading, Denoised) else "v_prediction"
        plain = {"clip_sample": False, "thresholding": False, "set_alpha_to_one": True}
        settings = {**config, **plain, "prediction_type": kind, "timestep_spacing": "trailing"}
        # where 1, 2, 4, 5 and 8 steps divide the timesteps the stock scheduler does
        ddim = FlowMapDDIMScheduler if read_as.horizon % 40 else diffusers.DDIMScheduler
        new = _made(ddim, settings)
        table = old.alphas_cumprod.double()
        if (new.alphas_cumprod.double().sqrt() - table.sqrt()).abs().max() > 1e-6:
            betas = 1 - table / torch.cat([table.new_ones(1), table[:-1]])
            new = _made(
                ddim,
                {**settings, "trained_betas": betas.tolist(), "rescale_betas_zero_snr": False},
            )
    return replace(read_as, scheduler=new)


def _made(kind: Any, settings: dict[str, Any]) -> Any:
    """As `from_config`, which would put its defaults in place of values that were the old class's defaults."""
    known = inspect.signature(kind.__init__).parameters
    return kind(**{key: value for key, value in settings.items() if key in known})


def _edm_euler(read_as: Schedule, config: dict[str, Any]) -> Any:
    if read_as.path.name != "trig":
        v = read_as.parametrization.sigma_data < 0  # pyright: ignore[reportAttributeAccessIssue]
        kind = "v_prediction" if v else "epsilon"
        settings = {**config, "prediction_type": kind, "final_sigmas_type": "zero"}
        exponential = config["sigma_schedule"] == "exponential"
        euler = ExponentialEulerScheduler if exponential else diffusers.EDMEulerScheduler
        return _made(euler, settings)
    if "sigma_max" in config:
        settings = {**config, "prediction_type": "v_prediction", "final_sigmas_type": "zero"}
        return _made(CosineEulerScheduler, settings)
    # the ends of the sCM paper, 0.002 and 80, in units of the data
    ends = {"sigma_min": 0.002 / config["sigma_data"], "sigma_max": 80 / config["sigma_data"]}
    return TrigFlowEulerScheduler(sigma_data=1.0, prediction_type="v_prediction", **ends)


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
