"""Which classes of diffusers can be learned how: tiny instances, run.

Writes diffusers_classes.json and the table of docs/diffusers.md.

Needs the extra: pip install 'flowmaps[diffusers]'. About a minute on one core.
"""

# %% the extra
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

if find_spec("diffusers") is None:
    sys.exit(print("left out: pip install 'flowmaps[diffusers]' first"))

import torch
from torch import nn

from flowmaps.adapters.carried import Jump
from flowmaps.adapters.diffusers import add_lora, denoiser, flow_map, velocity
from flowmaps.core.autodiff import along_source
from flowmaps.testing.fitness import fitness
from flowmaps.testing.zoo import ZOO

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "diffusers.md"
START, END = "<!-- table -->\n", "<!-- end of table -->"


# %% one class
def step_seconds(student, x, cond, times: int = 3) -> float:
    """Processor seconds of one step: derivative detached, then forward and backward of what is trained."""
    s, t = torch.full((len(x),), 0.7, dtype=x.dtype), torch.full((len(x),), 0.2, dtype=x.dtype)
    fn = lambda x, s, t: student.mean_velocity(x, s, t, **cond)
    seconds = []
    for _ in range(times):
        begin = time.process_time()
        u, slope = along_source(fn, x, s, t, x)
        (u - slope).square().mean().backward()
        student.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - begin)
    return sorted(seconds)[times // 2]


def trained(student) -> int:
    return sum(p.numel() for p in student.parameters() if p.requires_grad)


def row(name: str) -> dict:
    """Difference from the teacher at the start (float32), errors of derivatives (float64), trained weights and step times."""
    torch.manual_seed(0)
    generator, specimen = torch.Generator().manual_seed(0), ZOO[name]
    options = {"scheduler": specimen.scheduler(), "constant": specimen.constant()}
    field = velocity(specimen.build(), **options)
    student = flow_map(field)
    x, cond = specimen.inputs(4, generator)
    s = torch.tensor([0.2, 0.4, 0.6, 0.8])
    with torch.no_grad():
        start = float((student.velocity(x, s, **cond) - field.velocity(x, s, **cond)).abs().max())
    full = {"trained": trained(student), "seconds": step_seconds(student, x, cond)}
    lora = add_lora(flow_map(field), rank=4)
    small = {"trained": trained(lora), "seconds": step_seconds(lora, x, cond)}
    wide = flow_map(specimen.build(torch.float64), **options)
    for module in wide.modules():
        if isinstance(module, Jump):
            nn.init.normal_(module.last.weight, std=0.1)
    x, cond = specimen.inputs(2, generator, torch.float64)
    found = fitness(wide, x, cond, generator)
    second = denoiser(student).second if name == "AnyFlow" else "added"
    return {
        "class": specimen.kind, "path": repr(field.interpolant), "second_time": second, "start": start,
        **found._asdict(), "all": full, "lora": small,
    }  # fmt: skip


# %% all of them
rows = {name: row(name) for name in ZOO}
(HERE / "diffusers_classes.json").write_text(json.dumps(rows, indent=1) + "\n")


# %% the table
def mark(error: float, most: float) -> str:
    return f"yes ({error:.0e})" if error < most else f"no ({error:.0e})"


lines = [
    "| model | class | second time | start | exact JVP | finite steps | gradient through the JVP | LoRA: weights, time |",
    "|---|---|---|---|---|---|---|---|",
]
for name, r in rows.items():
    share, pace = (
        r["lora"]["trained"] / r["all"]["trained"],
        r["lora"]["seconds"] / r["all"]["seconds"],
    )
    lines.append(
        f"| {name} | `{r['class']}` | {r['second_time']} | {r['start']:.0e} | {mark(r['jvp'], 1e-6)} "
        f"| {mark(r['finite'], 0.1)} | {mark(r['gradient'], 1e-4)} | {share:.0%}, {pace:.0%} |"
    )
before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
PAGE.write_text(
    before + START + "\n".join(lines) + "\n" + END + rest.partition(END)[2], encoding="utf-8"
)
print("\n".join(lines))
