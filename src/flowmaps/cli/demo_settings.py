"""What `flowmaps demo` trains: a baseline of flow matching, and the flow map distilled from it. The one place to tune it."""

from ..train.run import Config, Run

BASELINE = Config(  # pyright: ignore[reportCallIssue]  # every field has a default
    recipe="flow_matching",
    data="digits",
    net="mlp-base",
    run=Run(steps=1_000_000, seconds=70, batch=256, lr=1e-3, save_every=1_000_000),  # pyright: ignore[reportCallIssue]
)

FLOW_MAP = Config(  # pyright: ignore[reportCallIssue]  # the demo sets `teacher` to the baseline
    recipe="emd",
    set={"through": "target"},
    data="digits",
    net="mlp-base",
    run=Run(steps=1_000_000, seconds=75, batch=256, lr=1e-3, save_every=1_000_000),  # pyright: ignore[reportCallIssue]
)

BASELINE_STEPS = (1, 2, 4, 8, 16, 32, 64)
FLOW_MAP_STEPS = (1, 2, 4, 8)
SOLVER = "heun"
SAMPLES = 5000
BATCH = 500
