"""What every golden shares: a tiny two-time network with explicit weights, generic points, and the file that is written.

A golden is the loss of somebody else's code, and its gradient, on stored weights, noise and times, in float64. The script
of a peer in this folder imports the peer from a checkout, forces its random draws, calls its loss function as it stands, and
stores numbers: never code. Checkouts lie in $FLOWMAPS_PEERS/OWNER+NAME with a PEER.json that names repository, commit, date and
licence. Peers in JAX want an interpreter of their own:

    FLOWMAPS_PEERS=/somewhere .venv/bin/python tools/goldens/py_meanflow.py
    FLOWMAPS_PEERS=/somewhere /somewhere/venv/bin/python tools/goldens/flow_maps.py

Everything stored is in our notation (t = 0 is data, s the source, t the target); scripts convert on the peer's side.
"""

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Arrays = dict[str, np.ndarray]

HERE = Path(__file__).parents[2] / "tests" / "goldens"
DIMS, WIDTH = 4, 8


def weights(rng: np.random.Generator, classes: int = 0) -> Arrays:
    """Weights of the network on (x, s, t): two hidden layers of eight units, and an embedding of classes and "no class"."""
    sizes = ((DIMS + 2, WIDTH), (WIDTH, WIDTH), (WIDTH, DIMS))
    table = {"E": rng.normal(size=(classes + 1, WIDTH))} if classes else {}
    return table | {
        f"{kind}{i}": rng.normal(size=size) * scale
        for i, (rows, columns) in enumerate(sizes)
        for kind, size, scale in (("W", (rows, columns), rows**-0.5), ("b", (columns,), 0.3))
    }


def points(rng: np.random.Generator, rows: int, jump: bool = True) -> Arrays:
    """Generic x_0, eps and times s > w > t; on the diagonal, `jump=False`, all times are s."""
    s, w, t = np.sort(rng.uniform(0.05, 0.95, size=(rows, 3)))[:, ::-1].T
    drawn = {"x_0": rng.normal(size=(rows, DIMS)), "eps": rng.normal(size=(rows, DIMS))}
    return drawn | {"s": s, "w": w if jump else s, "t": t if jump else s}


def forward(f: Arrays, x: Any, s: Any, t: Any, xp: Any, label: Any = None) -> Any:
    """The network at points (B, D), times and labels (B,); `xp` is torch or jax.numpy, weights are its arrays."""
    stack = xp.stack if hasattr(xp, "stack") else xp.column_stack
    join = xp.cat if hasattr(xp, "cat") else xp.concatenate
    h = join([x, stack([s, t], -1)], -1)
    for i in range(2):
        h = h @ f[f"W{i}"] + f[f"b{i}"]
        if i == 0 and "E" in f:
            h = h + f["E"][label]
        h = h / (1 + xp.exp(-h))  # SiLU
    return h @ f["W2"] + f["b2"]


def logvar(f: Arrays, s: Any, t: Any, xp: Any) -> Any:
    """The learned variance of flowmaps at times (B,): two layers on sines and cosines."""
    join = xp.cat if hasattr(xp, "cat") else xp.concatenate
    phase = xp.stack([s, t], -1)[..., None] * xp.asarray([1.0, 2.0, 4.0, 8.0])
    h = join([xp.sin(phase), xp.cos(phase)], -1).reshape(-1, 16) @ f["first.weight"].T
    h = h + f["first.bias"]
    h = h / (1 + xp.exp(-h))
    return (h @ f["last.weight"].T + f["last.bias"])[:, 0] / h.shape[1]


def logvar_weights(rng: np.random.Generator, channels: int) -> Arrays:
    """Generic weights of it, in torch's layout."""
    sizes = {"first.weight": (channels, 16), "first.bias": (channels,)}
    sizes |= {"last.weight": (1, channels), "last.bias": (1,)}
    return {key: rng.normal(size=size) * 0.7 for key, size in sizes.items()}


def peer(name: str, *below: str) -> dict[str, str]:
    """Put the folders of a checkout on the path, and say what it is."""
    root = Path(os.environ["FLOWMAPS_PEERS"]) / name
    sys.path[:0] = [str(root / part) for part in below or (".",)]
    return json.loads((root / "PEER.json").read_text())


def absent(*names: str) -> None:
    """Empty modules in place of what a peer imports for its data, logs or metrics, and its loss never calls."""

    class Nothing(types.ModuleType):
        __path__ = ()

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return Nothing(name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return args[0] if len(args) == 1 and callable(args[0]) else self

    for name in names:
        sys.modules[name] = Nothing(name)


def hollow(name: str) -> None:
    """A package of a peer without what its __init__ imports: its modules are imported one by one."""
    parts = name.split(".")
    stand_in(name, __path__=[str(Path(folder, *parts)) for folder in sys.path])


def stand_in(name: str, **members: Any) -> None:
    """A module of ours in place of one that a peer imports."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)


def store(name: str, stored: Arrays, **facts: Any) -> None:
    """Write one golden and its entry in peers.json."""
    HERE.mkdir(exist_ok=True)
    wide = {
        key: np.ascontiguousarray(value, dtype=None if value.dtype == np.int64 else np.float64)
        for key, value in ((key, np.asarray(value)) for key, value in stored.items())
    }
    save_file(wide, HERE / f"{name}.safetensors")
    index = HERE / "peers.json"
    known = json.loads(index.read_text()) if index.exists() else {}
    known[name] = facts
    index.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n")
    print(name, float(stored.get("loss", np.nan)))


def prefixed(prefix: str, values: Arrays) -> Arrays:
    """The same arrays under `prefix.`."""
    return {f"{prefix}.{key}": value for key, value in values.items()}


def joined(*parts: Arrays) -> Arrays:
    """Rows of several terms as one batch."""
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
