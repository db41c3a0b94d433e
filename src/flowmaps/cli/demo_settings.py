"""What `flowmaps demo` trains: a baseline of flow matching, and the flow map distilled from it. The one place to tune it."""

from ..train.run import Config, Run

BASELINE = Config(  # pyright: ignore[reportCallIssue]  # every field has a default
    recipe="flow_matching",
    data="digits",
    net="mlp-small",
    run=Run(  # pyright: ignore[reportCallIssue]
        steps=1_000_000, seconds=50, batch=256, lr=2e-3, ema=(0.03,), save_every=1_000_000
    ),
)

FLOW_MAP = Config(  # pyright: ignore[reportCallIssue]  # the demo sets `teacher` to the baseline
    recipe="push_forward",
    data="digits",
    net="mlp-small",
    run=Run(  # pyright: ignore[reportCallIssue]
        steps=1_000_000, seconds=98, batch=256, lr=2e-3, ema=(0.03,), save_every=1_000_000
    ),
)

BASELINE_STEPS = (1, 2, 4, 8, 16, 32, 64)
FLOW_MAP_STEPS = (1, 2, 4, 8)
SOLVER = "heun"
SAMPLES = 5000
BATCH = 500
