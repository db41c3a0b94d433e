"""Pictures of a run while it learns: the same noises every time, so that one watches them become data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..data.captions import in_turn
from ..sample import generate, solve, uniform
from ..train.checkpoint import codec_of
from ..train.hooks import Event
from .images import ladder
from .sounds import as_images
from .style import DATA, JUMP, SOFT, new_figure, save_png, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = (1, 2, 4)
"""Jumps that a flow map is shown with."""

WALK = 32
"""Heun steps that an ordinary flow-matching model is shown with."""


@final
class Previews:
    """Writes previews/step-N.png under the run's folder every `run.preview_every` steps, from the averaged weights.

    A hook of `fit`. Images come as a ladder (1, 2 and 4 jumps of the same noises, or 32 Heun steps for a model of
    velocities), points in the plane as scatter plots.

    Args:
        folder: Of the run.
        count: Samples of images; points are shown 1,000.
    """

    def __init__(self, folder: Path | str, *, count: int = 40) -> None:
        self.folder, self.count = Path(folder), count

    def __call__(self, event: Event) -> None:
        if not event.due(event.run.preview_every):
            return
        about = event.state.about
        shape = tuple(about["data"]["shape"])
        codec = codec_of(about)
        if not (_drawable(shape) or codec):
            return
        count = 1000 if len(shape) == 1 else self.count
        device = next(event.state.student.parameters()).device
        noise = event.state.student.interpolant.prior((count, *shape), Generator().manual_seed(0))
        told = in_turn(about["data"], torch.arange(count))
        cond = {name: value.to(device) for name, value in told.items()}
        drawn = preview(
            event.state.averaged(), noise.to(device), event.state.objective.recipe.local, cond
        )
        if codec is not None:
            drawn = {name: as_images(codec.decode(x)) for name, x in drawn.items()}
        picture = scatter(drawn) if len(shape) == 1 else ladder(drawn, across=5)
        save_png(picture, self.folder / "previews" / f"step-{event.state.step:08d}.png")


def preview(
    flow_map: FlowMap, noise: Tensor, local: bool, cond: dict[str, Any]
) -> dict[str, Tensor]:
    """Samples of the same noises (N, *D), by what was done to them."""
    with torch.no_grad():
        if local:
            x = solve(flow_map.velocity, noise, uniform(WALK), flow_map.interpolant, **cond)
            return {f"{WALK} Heun steps": x}
        steps = {f"{k} step{'s' * (k > 1)}": uniform(k) for k in STEPS}
        return {name: generate(flow_map, noise, times, **cond) for name, times in steps.items()}


def scatter(clouds: dict[str, Tensor], data: Tensor | None = None) -> Figure:
    """Points of the plane side by side, on one scale.

    Args:
        clouds: Title to points (N, 2).
        data: What they should look like, drawn first.
    """
    shown = ({} if data is None else {"data": data}) | clouds
    figure = new_figure(3.1 * len(shown), 3.3)
    everything = torch.cat(list(shown.values())).cpu()
    # the farthest few points would shrink the picture
    reach = float(everything.abs().flatten().quantile(0.999)) * 1.1 + 1e-6
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (title, points) in zip(panels, shown.items(), strict=True):
        colour = DATA if title == "data" else JUMP
        x, y = points.detach().cpu().double().T
        axes.scatter(x.numpy(), y.numpy(), s=4, alpha=0.5, color=colour, linewidths=0)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        tidy(axes, title)
        axes.tick_params(colors=SOFT)
    return figure


def _drawable(shape: tuple[int, ...]) -> bool:
    return shape == (2,) or (len(shape) == 3 and shape[0] in (1, 3))
