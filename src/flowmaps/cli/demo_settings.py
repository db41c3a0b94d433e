"""What `flowmaps demo` trains: a baseline of flow matching, and a flow map, distilled from it or not. The one place to tune it."""

from dataclasses import dataclass
from typing import Literal, final

from ..train.run import Config, GuidanceConfig, Run


@final
@dataclass(frozen=True)
class Demo:
    """A demo: what is trained, how it is measured, and the words of its page.

    Attributes:
        title: Of the page.
        things: What is drawn, in the plural.
        about: One line on the data; `{n}` is their number.
        baseline: The model that is walked.
        flow_map: The map; its teacher is the baseline, if its recipe wants one.
        baseline_steps: Steps of the walks.
        flow_map_steps: Numbers of jumps.
        samples: How many every row is measured on.
        scores: Names of the scores, the first of which is the one that the lead tells, with the word for it.
        legend: What the scores mean.
        shown: Numbers of the samples in the picture.
        features: Path in the repository of the classifier in whose features distances are taken; by default pixels.
        judged: Names of the data that hold the samples against what was asked for, by what is added to the names of their
            scores; by default the data of the runs.
        batch: Samples at a time.
        solver: How the baseline walks.
    """

    title: str
    things: str
    about: str
    baseline: Config
    flow_map: Config
    baseline_steps: tuple[int, ...]
    flow_map_steps: tuple[int, ...]
    samples: int
    scores: dict[str, str]
    legend: str
    shown: tuple[int, ...] = tuple(range(10))
    features: str | None = None
    judged: dict[str, str] | None = None
    batch: int = 500
    solver: str = "heun"


def _config(
    recipe: str,
    data: str,
    net: str,
    run: Run,
    *,
    settings: dict[str, float | str] | None = None,
    codec: str | None = None,
    patch: int | None = None,
    guidance: GuidanceConfig | None = None,
) -> Config:
    chosen = {} if settings is None else dict(settings)
    return Config(
        recipe=recipe,
        set=chosen,
        data=data,
        net=net,
        codec=codec,
        patch=patch,
        guidance=guidance,
        run=run,
    )  # pyright: ignore[reportCallIssue]


def _run(seconds: float, batch: int, lr: float, compile: Literal["auto", "yes", "no"]) -> Run:
    return Run(  # pyright: ignore[reportCallIssue]  # every field has a default
        steps=1_000_000,
        seconds=seconds,
        batch=batch,
        lr=lr,
        ema=(0.03,),
        compile=compile,
        save_every=1_000_000,
    )


DEMOS = {
    "digits": Demo(
        title="A flow map of handwritten digits",
        things="digits",
        about="digits: {n:,} scans of 8x8 pixels (scikit-learn)",
        baseline=_config("flow_matching", "digits", "mlp-small", _run(45, 256, 2e-3, "auto")),
        flow_map=_config("push_forward", "digits", "mlp-small", _run(104, 256, 2e-3, "auto")),
        baseline_steps=(1, 2, 4, 8, 16, 32, 64),
        flow_map_steps=(1, 2, 4, 8),
        samples=5000,
        scores={"frechet": "a Frechet distance", "accuracy": "an accuracy"},
        legend="Frechet: distance in pixels to all digits, smaller is better. Accuracy: share in which a support vector machine "
        "fitted on the real digits sees the digit that was asked for.",
    ),
    "prompts": Demo(
        title="From a prompt to a picture in one step",
        things="scenes",
        about="shapes: scenes of 32x32 pixels with captions, drawn as they are asked for",
        baseline=_config(
            "flow_matching",
            "shapes",
            "dit-tiny",
            _run(420, 32, 3e-3, "auto"),
            patch=8,
            guidance=GuidanceConfig(),  # pyright: ignore[reportCallIssue]
        ),
        flow_map=_config(
            "push_forward",
            "shapes",
            "dit-tiny",
            _run(300, 64, 1e-3, "auto"),
            settings={"laws": 0, "starts": 0.4, "skew": 1.0},
            patch=8,
            guidance=GuidanceConfig(scale=2.0, dropout=0.0),  # pyright: ignore[reportCallIssue]
        ),
        baseline_steps=(1, 4, 16, 64),
        flow_map_steps=(1, 2, 4),
        samples=300,
        scores={"adherence": "an adherence", "adherence_held_out": "an adherence to new pairs"},
        legend="Adherence: share of the shapes, colours and places asked for that a reader finds in the pixels, for captions of "
        "new scenes, and for captions with a pair of shape and colour that was never seen in training (held out). "
        "Walks are guided by 2, as the map was taught: two network calls for one evaluation.",
        judged={"": "shapes:test", "_held_out": "shapes:held-out"},
        batch=100,
    ),
    "sound": Demo(
        title="From a name to a second of sound in one step",
        things="clips",
        about="tones: {n:,} seconds of strings, bells, organs, voices and drums at 16 kHz, as they are computed",
        baseline=_config(
            "flow_matching",
            "tones",
            "dit-tiny",
            _run(300, 32, 2e-3, "yes"),
            settings={"mean": 1.0, "std": 2.5},
            codec="advance",
        ),
        flow_map=_config(
            "default",
            "tones",
            "dit-tiny",
            _run(380, 32, 2e-3, "yes"),
            settings={"velocity": "conditional", "mean": 0.5, "std": 1.6, "starts": 0.2},
            codec="advance",
        ),
        baseline_steps=(1, 4, 16, 64),
        flow_map_steps=(1, 2, 4),
        samples=264,
        scores={
            "frechet": "a Frechet audio distance",
            "instrument": "an accuracy of the instrument",
            "in_tune": "a share of clips in tune",
        },
        legend="Frechet: distance to all clips in features of a classifier of spectrograms, smaller is better. Instrument: "
        "share in which it hears the one that was asked for. In tune: share of the clips with a note that are within 50 cents "
        "of it.",
        shown=(33, 37, 42, 47, 51, 54, 58, 63, 65, 2),
        features="benchmarks/tones_classifier.safetensors",
        batch=66,
    ),
}
"""By name: `flowmaps demo digits`, `flowmaps demo prompts`, `flowmaps demo sound`."""
