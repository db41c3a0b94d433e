"""How likely are real data under a map, in bits per dimension? And which are the likeliest, and the strangest?

Examples:
  flowmaps likelihood runs/map                             64 data, exact divergence along the ODE -> likelihood.png, .json
  flowmaps likelihood runs/map --probes 1 --steps 32       Hutchinson's estimate, for large images
  flowmaps likelihood runs/map --method jumps --steps 4    determinants of the map's own jumps

Discrete data (8-bit pixels, the sixteen levels of digits) are dequantised: bits are then those of an ideal code for the values.
Without dequantisation a density of discrete data means nothing. The picture shows the bits of real data, of the map's own samples
and of noise with the data's mean and deviation, and the likeliest and least likely of the real ones.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from tyro.conf import Positional, arg

from .options import UsageError, parse

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ..control.likelihood import LogProb, Way


@final
@dataclass
class Options:
    """Options of `flowmaps likelihood`."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CKPT")]
    """Folder of a run (its newest checkpoint) or of a checkpoint."""
    method: Literal["ode", "jumps"] = "ode"
    """Heun steps with the divergence, or determinants of jumps."""
    steps: int | None = None
    """Steps (32) or jumps (1)."""
    probes: int | None = None
    """Random probes of the divergence; by default it is exact, one derivative per dimension."""
    n: Annotated[int, arg(name="number", aliases=["-n"])] = 64
    """How many data, and as many samples and noises."""
    only: Annotated[str | None, arg(name="class", metavar="CLASS")] = None
    """Number or name of a class."""
    data: Annotated[str | None, arg(metavar="DATA")] = None
    """Name or path of the data; by default the test part of what the model was trained on."""
    seed: int = 0
    """Of data, dequantisation and probes."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("likelihood.png")
    """Where to; the numbers go beside it as .json."""
    ema: str = "0"
    """Moving average of the weights (0, 1, 2), or raw for the weights themselves."""
    json: bool = False
    """Print the numbers as json."""


def main(argv: list[str]) -> int:
    """Weigh, draw, say."""
    options = parse(Options, argv, name="likelihood", about=f"{__doc__}")
    if options.n < 4 or min(options.steps or 1, options.probes or 1) < 1:
        raise UsageError(
            f"-n is at least 4, --steps and --probes at least 1; got {options.n}, {options.steps}, {options.probes}"
        )
    import torch

    from ..control.likelihood import dequantise, log_prob
    from ..sample import sample, uniform
    from .draw import open_model
    from .real import check_drawable, examples, leave, level_scale, rounded

    model = open_model(options.checkpoint, options.ema)
    check_drawable(model.saved.shape)
    real = examples(model, options.n, seed=options.seed, only=options.only, name=options.data)
    generator = torch.Generator().manual_seed(options.seed)
    scale, way = level_scale(real.data), _way(options)
    with torch.no_grad():
        noise = model.noise(options.seed, 0, options.n)
        drawn = sample(model.flow_map, noise, uniform(4), **real.cond)
    unlike = real.x.mean() + real.x.std() * torch.randn(real.x.shape, generator=generator).to(
        real.x
    )
    found: dict[str, LogProb] = {}
    for name, x in (("real data", real.x), ("samples", drawn), ("noise", unlike)):
        spread = x if scale is None else dequantise(x, scale, generator)
        found[name] = log_prob(model.flow_map, spread, way, generator=generator, **real.cond)
    bits = {name: each.bits(scale or 1.0).double().cpu() for name, each in found.items()}
    report: dict[str, Any] = {
        "checkpoint": str(model.saved.path),
        "method": str(way),
        "n": options.n,
        "levels_per_unit": None if scale is None else rounded(scale),
        "bits_per_dim": {name: rounded(float(each.mean())) for name, each in bits.items()},
        "standard_error": rounded(float(bits["real data"].std()) / options.n**0.5),
        "round_trip": rounded(float(found["real data"].round_trip.mean())),
        "cost": found["real data"].cost.as_dict(),
    }
    leave(options.out, _figure(bits, real.x), report, as_json=options.json)
    if not options.json:
        means = ", ".join(f"{name} {value:.3f}" for name, value in report["bits_per_dim"].items())
        print(f"{options.out}  (bits per dimension: {means}; {way})")
    return 0


def _way(options: Options) -> "Way":
    from ..control.likelihood import ByJumps, ByOde

    if options.method == "ode":
        return ByOde(options.steps or 32, probes=options.probes)
    if options.probes is not None:
        raise UsageError("determinants of jumps are exact: --probes belongs to --method ode")
    return ByJumps(options.steps or 1)


def _figure(bits: "dict[str, Tensor]", x: "Tensor") -> "Figure":
    """Histograms of the bits, and the two ends of the real data."""
    import numpy as np
    import torch

    from ..report.images import image_grid
    from ..report.style import DATA, EXACT, JUMP, new_figure, tidy

    figure = new_figure(9.6, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    everything = torch.cat(list(bits.values()))
    edges = np.linspace(float(everything.min()), float(everything.max()), 41)
    for (name, each), colour in zip(bits.items(), (DATA, JUMP, EXACT), strict=True):
        left.hist(each.numpy(), bins=list(edges), alpha=0.6, color=colour, label=name)
    tidy(left, "How many bits a dimension takes", "bits per dimension", "data")
    left.legend(frameon=False, fontsize=8, loc="upper right")
    order = bits["real data"].argsort()
    count = min(8, len(order) // 2)
    ends = torch.cat([order[:count], order[-count:]])
    right.imshow(np.asarray(image_grid(x.cpu()[ends], columns=count)))
    right.set_axis_off()
    right.set_title("Likeliest and least likely", loc="left", fontsize=10, fontweight="bold")
    return figure
