"""What `sample()` adds to the bare network calls, at the DiT's batch of 64, in float32.

    python benchmarks/sampling.py       about a minute

The same four jumps, with the sampler and as a hand-written loop over the network, in turns; results: benchmarks/sampling.json.
"""

import itertools
import json
import statistics
import time
from pathlib import Path

import torch

from flowmaps.core.flow_map import NetFlowMap
from flowmaps.nets import build, describe_net
from flowmaps.sample import sample, uniform

ROUNDS = 40


def main() -> None:
    """Time both loops in turns."""
    torch.manual_seed(0)
    net = build(describe_net("dit-small", (1, 28, 28), classes=10)).eval()
    flow_map = NetFlowMap(net)
    x = torch.randn(64, 1, 28, 28)
    label = torch.arange(64) % 10
    times = uniform(4)
    pairs = [
        (torch.full((64,), float(s)), torch.full((64,), float(t)))
        for s, t in itertools.pairwise(times)
    ]

    def bare() -> torch.Tensor:
        y = x
        for s, t in pairs:
            y = net(y, s, t, label=label)
        return y

    spent: dict[str, list[float]] = {"bare": [], "sample": []}
    with torch.no_grad():
        for i in range(ROUNDS + 2):
            for name, run in (
                ("bare", bare),
                ("sample", lambda: sample(flow_map, x, times, label=label)),
            ):
                began = time.perf_counter()
                run()
                if i > 1:
                    spent[name].append(time.perf_counter() - began)
    ratios = [b / a for a, b in zip(spent["bare"], spent["sample"], strict=True)]
    found = {
        "batch": 64,
        "net": "dit-small",
        "jumps": 4,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "bare_seconds": statistics.median(spent["bare"]),
        "sample_seconds": statistics.median(spent["sample"]),
        "overhead": statistics.median(ratios) - 1,
    }
    (Path(__file__).parent / "sampling.json").write_text(json.dumps(found, indent=1) + "\n")
    print(found)


if __name__ == "__main__":
    main()
