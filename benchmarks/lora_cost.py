"""What LoRA saves: memory and processor time of a training step of a map of diffusers, all weights against LoRA of rank 16.

A step is the exact derivative, detached, then forward and backward of what is trained and AdamW. Writes lora_cost.json.

Needs the extra: pip install 'flowmaps[diffusers]'. Half a minute on one core.
"""

# %% the extra
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

if find_spec("diffusers") is None:
    sys.exit(print("left out: pip install 'flowmaps[diffusers]' first"))

import diffusers
import torch

from flowmaps.adapters.diffusers import add_lora, flow_map, velocity
from flowmaps.core.autodiff import along_source
from flowmaps.testing.zoo import ZOO

HERE = Path(__file__).parent
torch.set_num_threads(1)

# %% models large enough for the difference to show: some millions of weights
SIZES = {
    "UNet2D": {"sample_size": 16, "block_out_channels": (64, 128), "norm_num_groups": 8},
    "DiT": {"attention_head_dim": 48, "num_attention_heads": 4, "num_layers": 6, "sample_size": 16},
}


def step(student, optimizer, x, cond) -> tuple[float, int]:
    """Processor seconds, and the bytes that are kept for the backward pass."""
    s, t = torch.full((len(x),), 0.7), torch.full((len(x),), 0.2)
    fn = lambda x, s, t: student.mean_velocity(x, s, t, **cond)
    weights = {p.untyped_storage().data_ptr() for p in student.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    begin = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        u, slope = along_source(fn, x, s, t, x)
        (u - slope).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.process_time() - begin, sum(kept.values())


def row(name: str, rank: int | None) -> dict:
    torch.manual_seed(0)
    specimen = ZOO[name]
    config = {**specimen.config, **SIZES[name]}
    model = getattr(diffusers, specimen.kind)(**config).eval()
    student = flow_map(velocity(model, scheduler=specimen.scheduler()))
    student = student if rank is None else add_lora(student, rank)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    x = torch.randn(8, 4, 16, 16)
    cond = {"class_labels": torch.arange(8)} if name == "DiT" else {}
    runs = [step(student, optimizer, x, cond) for _ in range(4)][1:]
    weights = 4 * sum(p.numel() for p in student.parameters())
    state = 3 * 4 * sum(p.numel() for p in trained)  # gradient, two moments
    return {
        "weights": weights // 4,
        "trained": sum(p.numel() for p in trained),
        "seconds": round(sorted(seconds for seconds, _ in runs)[1], 3),
        "megabytes": {
            "weights": round(weights / 1e6, 1),
            "gradients and moments": round(state / 1e6, 1),
            "kept for backward": round(runs[-1][1] / 1e6, 1),
        },
    }


# %% both, both ways
rows = {name: {"all": row(name, None), "LoRA, rank 16": row(name, 16)} for name in SIZES}
(HERE / "lora_cost.json").write_text(json.dumps(rows, indent=1) + "\n")
print(json.dumps(rows, indent=1))
