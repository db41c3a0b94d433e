"""Score the samples of a model against its data.

Examples:
  flowmaps evaluate runs/map                            5,000 samples in one jump
  flowmaps evaluate runs/map --steps 4 --json
  flowmaps evaluate runs/teacher --solver heun --steps 32
  flowmaps evaluate runs/map --features classifier.safetensors

frechet            distance of means and covariances to all data; smaller is better, it falls with more samples
kernel_distance    unbiased (KID); may be slightly negative
precision, recall  share of samples near data, and of data near samples
accuracy           share of samples whose class is recognised: by the classifier, or by a support vector machine fitted on
                   the data if there are at most 5,000 (digits)
All but accuracy in pixels, or in the features of the given classifier.

Data that can read what is in a sample say instead how much of what their captions ask for is there: of `shapes`
adherence      share of asked shapes, colours and places that are there; and each by itself, sizes too
number, all    share of pictures with as many objects as asked for; with all that was asked for and nothing else
  flowmaps evaluate runs/map --data shapes:held-out     pairs of shape and colour that training never saw
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, final

from tyro.conf import Positional, arg

from .options import UsageError, parse, to_json
from .words import say, table


@final
@dataclass
class Options:
    """Options of `flowmaps evaluate`."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CKPT")]
    """Folder of a run (its newest checkpoint) or of a checkpoint."""
    steps: int = 1
    """Jumps of the flow map, or steps of the solver."""
    n: Annotated[int, arg(name="number", aliases=["-n"])] = 5000
    """How many samples, all classes in turn."""
    solver: Annotated[str | None, arg(metavar="NAME")] = None
    """Walk along the velocity with euler, midpoint, heun, rk4, dopri5, ddim, dpm++2m or unipc."""
    grid: Literal["uniform", "shifted", "karras", "log_snr"] = "uniform"
    """Where the steps lie between noise and data."""
    scale: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Guidance scale; 1 guides nothing."""
    features: Annotated[Path | None, arg(metavar="FILE")] = None
    """A classifier's safetensors whose features replace pixels."""
    data: Annotated[str | None, arg(metavar="DATA")] = None
    """Name or path of the data; by default what the model was trained on."""
    seed: int = 0
    """Of the noise."""
    ema: str = "0"
    """Moving average of the weights (0, 1, 2), or raw for the weights themselves."""
    batch: int = 500
    """Samples at a time."""
    json: bool = False
    """Print the scores as json."""


def main(argv: list[str]) -> int:
    """Draw, score, print."""
    options = parse(Options, argv, name="evaluate", about=f"{__doc__}")
    if options.n < 10 or options.batch < 1:
        raise UsageError(
            f"scores need at least 10 samples; got -n {options.n}, --batch {options.batch}"
        )
    from .draw import Way, data_of, draw, open_model
    from .scores import judge

    way = Way(options.steps, options.solver, options.grid)
    model = open_model(options.checkpoint, options.ema)
    if model.local and options.solver is None:
        say(
            f"note: {model.recipe} learns a velocity and cannot jump; better: --solver heun --steps 32"
        )
    data = data_of(model, options.data)
    scores, told = judge(data, options.features), model.told_as(data, options.n)
    drawn = draw(
        model,
        way,
        options.n,
        seed=options.seed,
        told=told or None,
        scale=options.scale,
        batch=options.batch,
    )
    found = scores.thorough(drawn.x, drawn.labels)
    if options.json:
        settings = {"checkpoint": str(model.saved.path), "recipe": model.recipe, "n": options.n}
        way_taken = {"sampler": str(way), "nfe": way.nfe, "seconds": drawn.seconds}
        space = "pixels" if options.features is None else str(options.features)
        to_json(settings | way_taken | {"features": space, "scores": found})
        return 0
    print(
        f"{options.checkpoint} ({model.recipe}), {options.n:,} samples, {way}, {drawn.seconds:.3g} s"
    )
    print(table(["score", "value"], [[name, f"{value:.4g}"] for name, value in found.items()]))
    return 0
