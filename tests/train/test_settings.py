"""The description of a run, and what a machine makes of it."""

import json

import pytest
import torch
import train_kit as kit
from pydantic import ValidationError
from torch import nn

from flowmaps.core.flow_map import NetFlowMap
from flowmaps.core.interpolant import edm, linear
from flowmaps.core.parametrization import Denoised
from flowmaps.errors import CheckpointError, DataError, DerivativeError, RecipeError, TrainingError
from flowmaps.nets import build, describe_net
from flowmaps.recipes import get
from flowmaps.train import checkpoint, fit, machine
from flowmaps.train.machine import choose
from flowmaps.train.run import Config, GuidanceConfig, Run
from flowmaps.train.setup import config_of, make_guidance, prepare, start_from, train


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"seconds": 0.0}, {"batch": 0}, {"seed": -1}, {"seed": 2**63}, {"lr": 0.0}, {"lr": float("inf")},
        {"lr": float("nan")}, {"warmup": -1}, {"schedule": "step"}, {"weight_decay": -0.1}, {"beta2": 1.0}, {"clip": 0.0},
        {"ema": (0.0,)}, {"ema": (1.0,)}, {"precision": "fp16"}, {"compile": "maybe"}, {"log_every": 0},
        {"save_every": 0}, {"preview_every": 0}, {"keep": 0}, {"step": 3},
    ],
)  # fmt: skip
def test_wrong_runs_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Run(**wrong)


def test_runs_are_values():
    run = Run(ema=[0.3], seed=2**63 - 1, clip=float("inf"))
    assert Run.model_validate(
        json.loads(run.model_copy(update={"clip": 1.0}).model_dump_json())
    ).ema == (0.3,)
    with pytest.raises(ValidationError, match="frozen"):
        run.steps = 3
    torch.Generator().manual_seed(run.seed)
    config = Config(set={"diagonal": 0.5}, run={"steps": 7}, guidance={"scale": 2.0})
    assert Config.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError, match=r"run\.stepz"):
        Config(run={"stepz": 7})


@pytest.mark.parametrize(
    "wrong", [{"scale": 0.5}, {"max_scale": 1.0}, {"dropout": 1.0}, {"low": -0.1}, {"high": 1.1}]
)
def test_wrong_guidance_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        GuidanceConfig(**wrong)


def test_guidance_of_a_configuration():
    fixed = make_guidance(GuidanceConfig(scale=2.5, low=0.1), {"label": torch.tensor(3)})
    assert (fixed.conditioned, fixed.scale.value, fixed.low, int(fixed.null["label"])) == (
        False,
        2.5,
        0.1,
        3,
    )
    assert make_guidance(
        GuidanceConfig(scale=1.0, max_scale=4.0), {"label": torch.tensor(3)}
    ).conditioned
    with pytest.raises(RecipeError):
        make_guidance(GuidanceConfig(scale=3.0, max_scale=2.0), {"label": torch.tensor(3)})
    with pytest.raises(RecipeError, match="conditional data"):
        make_guidance(GuidanceConfig(), {})


def config_for(**changes):
    run = {
        "steps": 3,
        "batch": 8,
        "log_every": 1,
        "device": "cpu",
        "precision": "fp32",
        "compile": "no",
    }
    return Config(**{"recipe": "lsd", "data": "toy:moons", "net": "mlp-tiny", "run": run} | changes)


def test_a_configuration_is_trained_and_found_again(tmp_path):
    config = config_for()
    assert train(config, str(tmp_path / "run")).step == 3
    assert config_of(tmp_path / "run") == config
    found = checkpoint.load(tmp_path / "run")
    assert found.shape == (2,)
    assert found.about["config"]["net"] == "mlp-tiny"
    longer = config.model_copy(update={"run": config.run.model_copy(update={"steps": 4})})
    assert train(longer, tmp_path / "run", resume=True).step == 4
    with pytest.raises(CheckpointError, match="another flow_map"):
        train(config_for(net="mlp-small"), tmp_path / "run", resume=True)


def test_initial_weights_come_from_the_seed():
    def weight(**changes):
        torch.rand(3)
        return prepare(config_for(**changes)).flow_map.net.first.weight

    state = torch.get_rng_state()
    prepare(config_for())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weight(), weight())
    assert not torch.equal(weight(), weight(run={"seed": 1}))


def test_a_teacher_starts_the_student(tmp_path):
    train(config_for(recipe="flow_matching"), tmp_path / "teacher")
    parts = prepare(
        config_for(recipe="progressive_distillation", teacher=str(tmp_path / "teacher"))
    )
    taught = checkpoint.load(tmp_path / "teacher").flow_map
    for (name, p), q in zip(parts.flow_map.named_parameters(), taught.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert parts.flow_map.net.first.weight.requires_grad
    with pytest.raises(RecipeError, match="give --teacher FOLDER"):
        prepare(config_for(recipe="progressive_distillation"))
    with pytest.raises(
        CheckpointError, match=r"do not fit the student's network \(first misfit: net\."
    ):
        prepare(config_for(init=str(tmp_path / "teacher"), net="mlp-small"))
    with pytest.raises(DataError, match="did you mean"):
        prepare(config_for(data="toy:moonz"))


# the machine


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
@pytest.mark.parametrize("units", [False, True])
def test_precision(precision, units, monkeypatch):
    monkeypatch.setattr(machine, "has_bf16_units", lambda device: units)
    choice = choose(kit.run_of(precision=precision))
    assert choice.bf16 == {"auto": units, "fp32": False, "bf16": True}[precision]
    assert ("bfloat16 (" in choice.reason) == choice.bf16
    assert ("as asked" in choice.reason.partition(",")[2].partition("),")[0]) == (
        precision != "auto"
    )


@pytest.mark.parametrize(
    ("asked", "run", "compiler", "compiled"),
    [
        ("yes", {}, False, True),
        ("no", {"steps": 10**6}, True, False),
        ("auto", {"steps": 10**6}, True, True),
        ("auto", {"steps": 10**6}, False, False),
        ("auto", {"steps": 19_999}, True, False),
        ("auto", {"steps": 10**6, "seconds": 60.0}, True, False),
        ("auto", {"steps": 10, "seconds": 1200.0}, True, True),
    ],
)
def test_compile(asked, run, compiler, compiled, monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/bin/g++" if compiler else None)
    choice = choose(kit.run_of(compile=asked, **run))
    assert choice.compiled == compiled
    assert (", compiled (" in choice.reason) == compiled


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose(kit.run_of(device="auto")).device == "cpu"
    with pytest.raises(
        TrainingError, match=r"device 'cuda' was asked for, but torch .* finds none on this machine"
    ):
        kit.go("lsd", None, device="cuda")
    with pytest.raises(TrainingError, match="device must be auto, cpu, cuda or mps; got 'gpu'"):
        choose(kit.run_of(device="gpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert choose(kit.run_of(device="auto", precision="auto")).device == "cuda"
    assert not choose(kit.run_of(device="cuda", precision="auto")).bf16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert choose(kit.run_of(device="cuda", precision="auto")).bf16


@pytest.mark.parametrize("name", ["mean_flow", "lsd"])
def test_bfloat16_is_finite_and_near(name):
    """Four steps; bfloat16 has 8 bits, so losses of order one agree to some per cent, and are not the same."""
    curves = {}
    for precision in ("fp32", "bf16"):
        curve = curves.setdefault(precision, [])
        state = kit.go(
            name,
            None,
            steps=4,
            precision=precision,
            hooks=[lambda event, c=curve: c.append(event.loss)],
        )
        assert all(
            p.dtype == torch.float32 and p.isfinite().all() for p in state.student.parameters()
        )
    for a, b in zip(curves["fp32"], curves["bf16"], strict=True):
        assert a == pytest.approx(b, rel=0.05)
    assert curves["fp32"] != curves["bf16"]


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.norm = kit.network(), nn.LayerNorm(4)

    def forward(self, x, s, t, **cond):
        return self.inner(self.norm(x), s, t, **cond)


# what inductor warns of when it is imported
inductor = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@inductor
@pytest.mark.parametrize("compile", ["no", "yes"])
def test_layer_norm_is_refused_compiled_or_not(compile):
    """A compiled loss cannot look for it: the loop tries the loss eagerly once."""
    with pytest.raises(DerivativeError, match="layer_norm"):
        fit(get("lsd"), NetFlowMap(Normed()), kit.toy(), kit.run_of(steps=1, compile=compile))


def curves_of(name, **changes):
    """The losses of a run, not compiled and compiled."""
    curves = {"no": [], "yes": []}
    for compile, curve in curves.items():
        kit.go(name, None, compile=compile, hooks=[lambda e, c=curve: c.append(e.loss)], **changes)
    return zip(curves["no"], curves["yes"], strict=True)


def test_a_traced_run_is_the_eager_run(monkeypatch):
    """Without inductor, which takes a minute: traced once, and once more for each teacher."""
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(
        "flowmaps.train.loop.compiled",
        lambda loss: torch.compile(loss, backend=backend, dynamic=False),
    )
    torch.compiler.reset()
    for a, b in curves_of("progressive_distillation"):
        assert a == pytest.approx(b, rel=1e-6)
    assert 1 <= len(traced) <= 3


@inductor
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_compiled_run_is_the_eager_run():
    """Takes 80 s on a busy core, nearly all in inductor."""
    torch.compiler.reset()
    for a, b in curves_of("mean_flow", steps=3):
        assert a == pytest.approx(b, rel=1e-4)


# teachers and starts that mean something else


def test_a_teacher_of_another_path_is_rematched_and_does_not_start_the_student(tmp_path):
    """The velocity that a linear teacher has on EDM's path is the world's: x_n = k x_o at equal signal-to-noise ratio."""
    folder = str(tmp_path / "teacher")
    train(config_for(recipe="flow_matching"), folder)
    parts = prepare(config_for(recipe="consistency_distillation", teacher=folder))
    taught = checkpoint.load(folder).flow_map
    assert parts.about["start"] is None
    assert parts.teacher is not None
    assert parts.teacher.interpolant == parts.recipe.interpolant == edm()
    s = torch.tensor([0.2, 0.5, 0.8])
    x = torch.randn(3, *parts.data.shape)
    sigma = edm().sigma(s)
    shape = (-1, *[1] * (x.ndim - 1))
    t, k = (sigma / (1 + sigma)), (1 + sigma).reshape(shape)
    noise = x / k + (1 - t.reshape(shape)) * taught.velocity(
        x / k, t
    )  # linear path: eps = x + (1 - t) v
    expected = edm().dsigma(s).reshape(shape) * noise
    torch.testing.assert_close(parts.teacher.velocity(x, s), expected, rtol=1e-4, atol=1e-4)
    fresh = prepare(config_for(recipe="improved_consistency_training")).flow_map
    assert all(map(torch.equal, parts.flow_map.parameters(), fresh.parameters()))
    config = config_for(recipe="consistency_distillation", teacher=folder)
    assert train(config, tmp_path / "cd").step == 3
    longer = config.model_copy(update={"run": config.run.model_copy(update={"steps": 4})})
    assert (
        train(longer, tmp_path / "cd", resume=True).step == 4
    )  # its teacher is rebuilt, not stored


def test_weights_that_mean_something_else_are_refused(tmp_path):
    folder = str(tmp_path / "fm")
    train(config_for(recipe="flow_matching"), folder)
    with pytest.raises(CheckpointError, match=r"trained on linear\(\), read as Average.*on edm\("):
        prepare(config_for(recipe="easy_consistency_tuning", init=folder))
    net = checkpoint.load(folder).flow_map.net
    with pytest.raises(CheckpointError, match="read as Denoised"):  # one path, another reading
        start_from(NetFlowMap(net, parametrization=Denoised(linear())), NetFlowMap(net), "x")
    assert prepare(config_for(recipe="mean_flow", init=folder)).about["start"] == folder
    stage = str(tmp_path / "ect")
    train(config_for(recipe="easy_consistency_tuning"), stage)
    assert (
        prepare(config_for(recipe="truncated_consistency", teacher=stage)).about["start"] == stage
    )


def test_a_net_with_a_skip_starts_as_one_without(gen) -> None:
    """Its gains are zero at first; any other misfit is refused as ever."""
    plain, wide = (
        NetFlowMap(build(describe_net("dit-tiny", (1, 8, 8), patch=4, skip=skip)))
        for skip in ("no", "yes")
    )
    with torch.no_grad():
        for weight in [*plain.parameters(), *wide.parameters()]:
            weight.normal_(std=0.1)
    start_from(wide, plain, "x")
    x = torch.randn(3, 1, 8, 8, generator=gen)
    torch.testing.assert_close(wide(x, 0.9, 0.2), plain(x, 0.9, 0.2), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r"first misfit: net\.last\.weight"):
        start_from(plain, wide, "x")
