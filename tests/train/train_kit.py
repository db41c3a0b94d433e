"""Tiny runs that tests start here, in forked processes and under torchrun."""

import json
import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import Generator

import flowmaps.nets  # noqa: F401
from flowmaps import recipes
from flowmaps.core.flow_map import NetFlowMap
from flowmaps.data import TensorData
from flowmaps.errors import FlowmapsError
from flowmaps.learn.guidance import Guidance
from flowmaps.learn.times import Fixed, LogUniform
from flowmaps.nets import build
from flowmaps.train import checkpoint, fit, loop
from flowmaps.train.run import Run

SHAPE, CLASSES = (1, 3, 4), ("a", "b", "c")
STEPS = 12
RECIPES = {
    "mean_flow": lambda: replace(
        recipes.get("mean_flow"), guidance=Guidance({"label": 3}, LogUniform(1.0, 3.0), dropout=0.3)
    ),
    "shortcut": lambda: replace(
        recipes.get("shortcut", ema=0.7, bootstrap=0.25),
        guidance=Guidance({"label": 3}, Fixed(1.0), 0.3),
    ),
    "lsd": lambda: recipes.get("lsd", channels=8),
    "progressive_distillation": lambda: recipes.get("progressive_distillation", stages=3),
}


def toy(n=37):
    x = torch.randn((n, *SHAPE), generator=Generator().manual_seed(7)).clamp(-2, 2)
    return TensorData("toy", x, torch.arange(n) % 3, CLASSES)


def settings(guided=False, classes=3):
    shape = list(SHAPE)
    return {
        "family": "MLP",
        "shape": shape,
        "width": 16,
        "depth": 1,
        "classes": classes,
        "guided": guided,
    }


def network(seed=1, **more):
    """A network whose every weight is generic: no zeros of initialisation."""
    net = build(settings(**more))
    generator = Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return net


def student(recipe, seed=1):
    guided = recipe.guidance is not None and recipe.guidance.conditioned
    net = network(seed, guided=guided)
    return NetFlowMap(net, recipe.interpolant, recipe.parametrization, local=recipe.local)


def run_of(**changes):
    plain = {
        "steps": STEPS, "batch": 16, "lr": 1e-2, "warmup": 3, "log_every": 1, "save_every": 4, "ema": (0.05, 0.2),
        "flip": True, "device": "cpu", "precision": "fp32", "compile": "no", "seed": 5,
    }  # fmt: skip
    return Run(**plain | changes)


def go(name, out, *, resume=False, hooks=(), **changes):
    """A run of one of `RECIPES`."""
    recipe = RECIPES[name]()
    flow_map = student(recipe)
    about = {"flow_map": checkpoint.describe_map(flow_map, settings(guided=name == "mean_flow"))}
    teacher = student(recipe, seed=2) if recipe.needs_teacher else None
    return fit(
        recipe, flow_map, toy(), run_of(**changes), teacher=teacher, out=out, resume=resume, hooks=hooks, about=about
    )  # fmt: skip


def tensors(out):
    return load_file(checkpoint.locate(out) / "state.safetensors")


def metrics(out):
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def same(a, b):
    """The names of the tensors of two final checkpoints that differ in any bit."""
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    return [key for key, value in left.items() if not torch.equal(value, right[key])]


# what runs in a process of its own


def kill(*ignored, **also):
    os.kill(os.getpid(), signal.SIGKILL)


def half(tensors, path):
    """Half a file of weights, and then the end of the process."""
    path.write_bytes(b"x" * 1000)
    kill()


DEATHS = {
    "step": None,
    "weights": "save_file",
    "manifest": "json",
    "rename": "_flush",
    "rotation": "complete",
}


def die(death, at):
    """Make this process die by SIGKILL at or after step `at`; the hook that does it."""

    def hook(event):
        if event.state.step != at:
            return
        if death == "step":
            kill()
        elif death == "weights":
            checkpoint.save_file = half
        elif death == "manifest":
            checkpoint.json = type("Json", (), {"dumps": kill})
        elif death == "rename":
            checkpoint.Path.rename = kill
        elif death == "rotation":
            checkpoint.complete = kill

    return hook


def victim(out, death, at):
    torch.set_num_threads(1)
    go("mean_flow", out, resume=Path(out).exists(), hooks=[die(death, at)])


def sleeper(out, at):
    """A run that waits at step `at`, when it says `ready`, until it is told to `go`; it writes how it ended."""
    torch.set_num_threads(1)
    out = Path(out)
    end = out.with_name(out.name + f".end{os.environ.get('RANK', '')}")
    try:
        state = go("mean_flow", out, hooks=[waiter(out, at)])
        end.write_text(str(state.step))
    except KeyboardInterrupt:
        end.write_text("aborted")


def waiter(out, at):
    def hook(event):
        if event.state.step == at:
            (out / "ready").touch()
            wait_for(out / "go")

    return hook


def wait_for(path, seconds=40.0, text=""):
    """Until the file is there and holds the text."""
    until = time.monotonic() + seconds
    while not (path.exists() and text in path.read_text()):
        if time.monotonic() > until:
            raise TimeoutError(f"no {path}")
        time.sleep(0.01)


def full_disk(out, at):
    """From step `at` no file may grow past 6,000 bytes, as on a full disk: the weights are larger."""
    import resource

    torch.set_num_threads(1)

    def hook(event):
        if event.state.step == at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))

    try:
        go("mean_flow", out, hooks=[hook])
    except FlowmapsError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(out).with_suffix(".end").write_text(f"{type(error).__name__}: {error}")


# what runs under torchrun


def attempt(folder, name, action):
    """Note under the name how an action of this rank ended."""
    try:
        told = str(action())
    except FlowmapsError as error:
        told = f"{type(error).__name__}: {error}"
    (folder / f"{name}.{os.environ['RANK']}").write_text(told)


def poke(folder):
    """A hook of the first process that interrupts the other one at step 3."""

    def hook(event):
        if event.state.step == 3:
            os.kill(int((folder / "pid.1").read_text()), signal.SIGINT)

    return hook


def poison(at):
    """A loss that is not finite in the second process only, from step `at`."""

    def order(step):
        rows = torch.arange(16)
        rows[1] = 36 if step == at else 1
        return rows

    return order


def timed(pace):
    """Steps within a budget of time, by a clock that goes too fast."""
    plain = loop.time
    clock = SimpleNamespace(
        perf_counter=lambda: pace * plain.perf_counter(), monotonic=plain.monotonic
    )
    loop.time = clock
    try:
        return go("lsd", None, steps=10**6, seconds=0.3, warmup=0).step
    finally:
        loop.time = plain


def two(folder):
    """All that two processes must do, one after the other in one launch."""
    rank = os.environ["RANK"]
    (folder / f"pid.{rank}").write_text(str(os.getpid()))
    for name in ("mean_flow", "lsd", "progressive_distillation"):
        attempt(folder, name + ".end", lambda name=name: go(name, folder / name, steps=6).step)
    attempt(folder, "uneven", lambda: go("lsd", folder / "uneven.run", batch=15).step)
    attempt(folder, "occupied", lambda: go("lsd", folder / "lsd").step)
    attempt(folder, "short", lambda: go("lsd", folder / "again", steps=4).step)
    attempt(folder, "resumed", lambda: go("lsd", folder / "again", steps=6, resume=True).step)
    attempt(folder, "poked", lambda: go("lsd", folder / "poked.run", hooks=[poke(folder)]).step)
    attempt(folder, "timed", lambda: timed(pace=1.0 if rank == "0" else 3.0))
    data = toy()
    data.x[36] = float("nan")
    broken = RECIPES["lsd"]()
    attempt(
        folder,
        "broken",
        lambda: fit(broken, student(broken), data, run_of(), order=poison(2)).step,
    )
    sleeper(folder / "ctrl-c", 3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        two(Path(sys.argv[1]))
    except BaseException:
        (Path(sys.argv[1]) / f"crash.{os.environ['RANK']}").write_text(traceback.format_exc())
        raise
