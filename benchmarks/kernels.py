"""Two kernels of the DiT that are written out, against torch's: attention in bfloat16, and GELU compiled.

    python benchmarks/kernels.py       a minute

Forward and backward pass at the shapes of the DiT of step_cost.py, in turns; medians. Results: benchmarks/kernels.json.
"""

import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from flowmaps.nets.attention import attend
from flowmaps.nets.block import gelu

ROUNDS = 60


def main() -> None:
    """Time everything and write the json."""
    torch.manual_seed(0)
    fused = nn.functional.scaled_dot_product_attention
    heads, hidden = (64, 3, 49, 64), (64, 49, 768)
    tanh = torch.compile(lambda x: nn.functional.gelu(x, approximate="tanh"))
    ways = {
        "attention, fused, float32": there_and_back(fused, heads, torch.float32),
        "attention, fused, bfloat16": there_and_back(fused, heads, torch.bfloat16),
        "attention, written out, bfloat16": there_and_back(attend, heads, torch.bfloat16),
        "gelu, tanh, bfloat16": there_and_back(tanh, hidden, torch.bfloat16),
        "gelu, logistic, bfloat16": there_and_back(torch.compile(gelu), hidden, torch.bfloat16),
    }
    spent = {name: [] for name in ways}
    for turn in range(-3, ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if turn >= 0:
                spent[name].append(time.perf_counter() - began)
    found = {name: round(1e3 * statistics.median(values), 3) for name, values in spent.items()}
    about = {"milliseconds": found, "threads": torch.get_num_threads()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    print(json.dumps(about, indent=1))


def there_and_back(function, shape: tuple[int, ...], dtype: torch.dtype):
    """A closure of a forward and a backward pass."""
    arguments = 3 if len(shape) == 4 else 1
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(arguments)]
    weight = torch.randn(shape, dtype=dtype)

    def run() -> None:
        torch.autograd.grad(function(*inputs), inputs, weight)

    return run


if __name__ == "__main__":
    main()
