"""How wrong derivatives are in float32 and bfloat16, exact, by finite differences and by short legs.

    python benchmarks/hazards.py        a few seconds

Relative errors, in the L2 norm over 64 generic points, of the Eulerian derivative of two small networks whose every weight
is random, against the exact derivative of the same weights in float64; results: benchmarks/hazards.json. A "leg" is the
one-sided difference (u(x + h v, s + h, t) - u(x, s, t)) / h that a finite step puts in the place of the derivative.
"""

import json
from copy import deepcopy
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from flowmaps.core.autodiff import EXACT, Derivative, along_source
from flowmaps.nets import MLP, DiT

STEPS = (0.2, 0.1, 0.05, 0.01, 5e-3, 1e-3, 1e-4, 1e-5)
FAMILIES = {
    "MLP": (lambda: MLP((2,), width=64, depth=3), (2,)),
    "DiT": (lambda: DiT((1, 8, 8), patch=2, width=48, depth=2, heads=3), (1, 8, 8)),
}


def network(family: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network with generic weights, and the shape of its samples."""
    make, shape = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        net = make()
    gen = Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=gen))
    return net, shape


@torch.no_grad()
def derivatives(family: str) -> dict[str, dict[str, float]]:
    """Relative errors by precision and way."""
    net, shape = network(family)
    gen = Generator().manual_seed(1)
    x, v = torch.randn(2, 64, *shape, generator=gen)
    s, t = 0.05 + 0.7 * torch.rand(2, 64, generator=gen)  # a leg of 0.2 stays within time
    points = (x, s, t)
    wide = deepcopy(net).double()
    exact = along_source(wide, *(p.double() for p in points), v.double())[1]

    def error(slope: Tensor) -> float:
        return float((slope.double() - exact).norm() / exact.norm())

    def slope(derivative: Derivative) -> float:
        return error(along_source(net, *points, v, derivative=derivative)[1])

    found: dict[str, dict[str, float]] = {}
    for precision, half in (("float32", False), ("bfloat16", True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found[precision] = {"exact": slope(EXACT)}
            found[precision] |= {f"finite {h:g}": slope(Derivative("finite", h)) for h in STEPS}
    raw: dict[str, float] = {}
    with torch.autocast("cpu", torch.bfloat16):
        for h in STEPS:
            ahead, behind = net(x + h * v, s + h, t), net(x - h * v, s - h, t)
            raw[f"finite {h:g}"] = error((ahead.float() - behind.float()) / (2 * h))
            raw[f"leg {h:g}"] = error((ahead.float() - net(*points).float()) / h)
    found["bfloat16, differenced as it is"] = raw
    for h in STEPS:
        found["float32"][f"leg {h:g}"] = error((net(x + h * v, s + h, t) - net(*points)) / h)
    narrow = deepcopy(net).bfloat16()
    found["bfloat16 weights"] = {
        "exact": error(
            along_source(lambda x, s, t: narrow(x.bfloat16(), s, t).float(), *points, v)[1]
        )
    }
    return found


def main() -> None:
    """Measure both networks and write the figures."""
    torch.set_num_threads(1)
    found = {
        family: {
            precision: {way: float(f"{value:.3g}") for way, value in ways.items()}
            for precision, ways in derivatives(family).items()
        }
        for family in FAMILIES
    }
    about = "relative errors of the Eulerian derivative against float64"
    result = {"about": about, "torch": torch.__version__, "derivatives": found}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
