"""Restore real data that were damaged: masked, blurred or shrunk, with noise; and say how sure the restoration is.

Examples:
  flowmaps restore runs/map                                    half of the pixels, at random -> restore.png, restore.json
  flowmaps restore runs/map --damage blur --sigma 0.05
  flowmaps restore runs/map --damage shrink --by 4 --draws 16
  flowmaps restore runs/map --damage box --method plug         a sharp guess, one jump per step, not calibrated
  flowmaps restore runs/map --damage noise --sigma 0.7 --method denoise      exact for any law
  flowmaps restore runs/map --method vfm --prior runs/half --learn --run.steps 4000     learn this damage, once
  flowmaps restore runs/map --method vfm --prior runs/half --draws 64                   then a draw is one jump

The picture shows truth, what was seen, the mean over draws, their deviation, and draws. In the json: the signal-to-noise ratio of
the mean and of draws, the data residual (1 where the noise is as claimed), and how often the truth lies in the central 68 and 95 %
of the draws, over the pixels where the draws differ.

vfm learns a Gaussian law of the noise given what was seen, cosign a branch that sees it beside the frozen map. RUN is then good for
its --damage, --by and --sigma only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from tyro.conf import Positional, arg

from ..train.run import Run
from .learned import LEARNED, restorer
from .options import UsageError, parse

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Generator, Tensor

    from ..control.operators import Operator
    from ..control.restore import Restored, Restorer


def _run() -> Run:
    return Run(batch=128, compile="no", precision="fp32")  # pyright: ignore[reportCallIssue]


@final
@dataclass
class Options:
    """Options of `flowmaps restore`."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CKPT")]
    """Folder of a run (its newest checkpoint) or of a checkpoint."""
    damage: Literal["mask", "box", "blur", "shrink", "noise"] = "mask"
    """Random pixels lost, a square lost, a Gaussian blur, means over squares, or noise alone."""
    by: float | None = None
    """Share of the pixels lost (0.5), share of the side (0.5), deviation of the blur (1.5 pixels), or side of the squares (2)."""
    sigma: float = 0.05
    """Deviation of the noise of what is seen; data are in [-1, 1]."""
    method: Literal["pigdm", "plug", "admm", "chain", "map", "denoise", "vfm", "cosign"] = "pigdm"
    """Guided flow, plug and play, the same by ADMM, chains in noise space, likeliest noise, posterior of noisy data, or learned."""
    steps: int | None = None
    """Steps (pigdm 16, plug 32, admm 4, denoise 16, cosign 1) or iterations (chain 100, map 50)."""
    prior: Annotated[Path | None, arg(metavar="RUN")] = None
    """Folder of what vfm or cosign learned."""
    learn: bool = False
    """Learn it first, or go on learning it."""
    recipe: str | None = None
    """With --learn: by what cosign's branch learns to draw (psd, ...) instead of the mean, or vfm's map goes on learning."""
    net: str = "mlp-small"
    """With --learn: the network beside the map."""
    run: Run = field(default_factory=_run)
    """With --learn: how long and how."""
    draws: int = 8
    """Draws per datum."""
    n: Annotated[int, arg(name="number", aliases=["-n"])] = 10
    """How many data, one row each."""
    only: Annotated[str | None, arg(name="class", metavar="CLASS")] = None
    """Number or name of a class."""
    data: Annotated[str | None, arg(metavar="DATA")] = None
    """Name or path of the data; by default the test part of what the model was trained on."""
    seed: int = 0
    """Of data, damage and draws."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("restore.png")
    """Where to; the numbers go beside it as .json."""
    ema: str = "0"
    """Moving average of the weights (0, 1, 2), or raw for the weights themselves."""
    json: bool = False
    """Print the numbers as json."""


def main(argv: list[str]) -> int:
    """Damage, restore, draw, say."""
    options = parse(Options, argv, name="restore", about=f"{__doc__}")
    if min(options.n, options.draws, options.steps or 1) < 1 or options.sigma <= 0:
        raise UsageError(f"-n, --draws and --steps are at least 1, --sigma above 0; got {options}")
    import torch

    from ..control.restore import restore
    from .draw import open_model
    from .real import check_drawable, examples, leave

    model = open_model(options.checkpoint, options.ema)
    check_drawable(model.saved.shape)
    real = examples(model, options.n, seed=options.seed, only=options.only, name=options.data)
    generator = torch.Generator().manual_seed(options.seed)
    operator = _operator(options, real.x, generator)
    clean = operator(real.x)
    y = clean + options.sigma * torch.randn(clean.shape, generator=generator).to(clean)
    method = _method(options, float(real.x.std()))
    learned = options.method in LEARNED
    flow_map = restorer(options, model, operator) if learned else model.flow_map
    found = restore(
        *(flow_map, y, operator, options.sigma),
        shape=model.saved.shape,
        method=method,
        draws=options.draws,
        generator=generator,
        **real.cond,
    )
    report: dict[str, Any] = {"checkpoint": str(model.saved.path), "damage": options.damage}
    report |= {"n": options.n}
    report |= {"sigma": options.sigma, "method": str(method)}
    report |= scores(found, real.x)
    leave(options.out, _picture(found, real.x, y, operator), report, as_json=options.json)
    if not options.json:
        print(
            f"{options.out}  ({options.damage}, {options.method}: {report['snr_mean']:.1f} dB by the mean, residual "
            f"{report['residual']:.2f}, coverage {report['coverage']['68']:.0%} of 68 % and "
            f"{report['coverage']['95']:.0%} of 95 %)"
        )
    return 0


def _operator(options: Options, x: "Tensor", generator: "Generator") -> "Operator":
    """The measurement that was asked for, of images like `x`."""
    import torch

    from ..control.operators import Downsample, Mask, gaussian_blur

    by, (height, width) = options.by, x.shape[-2:]
    if options.damage == "mask":
        lost = torch.rand(1, height, width, generator=generator) < (0.5 if by is None else by)
        return Mask((~lost).float())
    if options.damage == "box":
        keep = torch.ones(1, height, width)
        tall, wide = (round(side * (0.5 if by is None else by)) for side in (height, width))
        top, left = (height - tall) // 2, (width - wide) // 2
        keep[:, top : top + tall, left : left + wide] = 0
        return Mask(keep)
    if options.damage == "blur":
        return gaussian_blur(1.5 if by is None else by)
    if options.damage == "shrink":
        return Downsample(round(by or 2))
    return _identity


def _identity(x: "Tensor") -> "Tensor":
    return x


def _method(options: Options, spread: float) -> "Restorer":
    """The method that was asked for; `spread` is the deviation of the data."""
    from ..control.restore import (
        VFM,
        CoSIGN,
        Denoise,
        NoiseMAP,
        NoisePosterior,
        PiGDM,
        PlugAndPlay,
        PnPCM,
    )

    steps = options.steps
    made: dict[str, Callable[[], Restorer]] = {
        "pigdm": lambda: PiGDM(steps or 16, scale=spread),
        "plug": lambda: PlugAndPlay(steps or 32, scale=spread),
        "admm": lambda: PnPCM(steps or 4, scale=spread),
        "chain": lambda: NoisePosterior(steps or 100),
        "map": lambda: NoiseMAP(steps or 50),
        "denoise": lambda: Denoise(steps or 16),
        "vfm": VFM,
        # a projection onto what a blur lets through would be its noise, many times over
        "cosign": lambda: CoSIGN(steps or 1, scale=spread),
    }
    return made[options.method]()


def scores(found: "Restored", truth: "Tensor") -> dict[str, Any]:
    """Peak signal-to-noise ratios of images in [-1, 1], residual and coverage, and what it cost."""
    from ..control.restore import coverage
    from .real import rounded

    def decibel(x: "Tensor") -> float:
        return rounded(float(10 * (4 / (x - truth).square().mean()).log10()))

    # where all draws agree to a thousandth there is nothing to cover: pixels that were seen
    unsure = found.std > 1e-3
    covered = coverage(found.x[:, unsure], truth[unsure])
    return {
        "draws": len(found.x),
        "snr_mean": decibel(found.mean),
        "snr_draw": decibel(found.x),
        "residual": rounded(float(found.residual.mean())),
        "unsure": rounded(float(unsure.float().mean())),
        "coverage": {f"{100 * level:.0f}": rounded(share) for level, share in covered.items()},
        "cost": found.cost.as_dict(),
    }


def _picture(found: "Restored", truth: "Tensor", y: "Tensor", operator: "Operator") -> "Image":
    from ..control.operators import Mask
    from ..report.images import ladder

    # of what a mask hides only noise was measured
    seen = operator(y) if isinstance(operator, Mask) else y
    if y.shape != truth.shape:
        seen = y.repeat_interleave(truth.shape[-2] // y.shape[-2], -2)
        seen = seen.repeat_interleave(truth.shape[-1] // y.shape[-1], -1)
    columns = {"truth": truth, "seen": seen, "mean": found.mean}
    columns["deviation"] = 2 * found.std - 1
    columns |= {f"draw {i + 1}": x for i, x in enumerate(found.x[:3])}
    return ladder(columns)
