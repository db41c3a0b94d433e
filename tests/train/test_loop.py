"""What a step does: rate, averages, hooks, and what it refuses."""

import io
import math
from dataclasses import replace

import pytest
import torch
import train_kit as kit
from torch import nn

from flowmaps.core.flow_map import NetFlowMap
from flowmaps.data import TensorData
from flowmaps.errors import DataError, RecipeError, TrainingError
from flowmaps.learn.guidance import Guidance
from flowmaps.learn.times import Times
from flowmaps.recipes import get
from flowmaps.train import checkpoint, fit
from flowmaps.train.ema import Average
from flowmaps.train.hooks import Event, Progress, _clock
from flowmaps.train.loop import learning_rate


def test_learning_rates():
    run = kit.run_of(lr=0.4, warmup=4, steps=100)
    assert [learning_rate(run, step, 0.0) for step in range(6)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]
    )
    for progress, share in ((0.25, 0.8535533906), (0.5, 0.5), (1.0, 0.0)):
        assert learning_rate(run, 50, progress) == pytest.approx(0.4 * share)
    linear = run.model_copy(update={"schedule": "linear"})
    assert learning_rate(linear, 50, 0.3) == pytest.approx(0.4 * 0.7)
    assert learning_rate(linear, 1, 0.3) == pytest.approx(0.2 * 0.7)
    constant = run.model_copy(update={"schedule": "constant", "warmup": 0})
    assert learning_rate(constant, 0, 0.9) == 0.4


def test_the_rate_of_a_run_follows_its_schedule():
    rates = []
    run = {"steps": 6, "warmup": 2, "lr": 1e-2}
    kit.go("lsd", None, hooks=[lambda event: rates.append((event.lr, lr_of(event)))], **run)
    cosine = [0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    expected = [1e-2 * share * (0.5 if k == 0 else 1) for k, share in enumerate(cosine)]
    assert [rate for rate, _ in rates] == pytest.approx(expected)
    assert all(told == used for told, used in rates)


def lr_of(event):
    return event.state.optimizer.param_groups[0]["lr"]


def test_the_average_is_its_recursion():
    """Weights that rise by one a step: after k steps the average is the sum of k' times the product of later decays."""
    module = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        module.weight.zero_()
    share, steps = 0.13, 60
    average = Average(module, share)
    for step in range(1, steps + 1):
        with torch.no_grad():
            module.weight.fill_(step)
        average.update(module, step)
    decay = [2 ** (-1 / max(share * k, 0.5)) for k in range(steps + 1)]
    closed = sum((1 - decay[k]) * k * math.prod(decay[k + 1 :]) for k in range(1, steps + 1))
    assert average.weights["weight"].item() == pytest.approx(closed, rel=1e-12)
    # the profile is a power: of a ramp it lags by a share of the run, near r / (ln 2 + r)
    assert 1 - closed / steps == pytest.approx(share / (math.log(2) + share), rel=0.05)


def test_the_average_halves_its_past_over_the_half_life():
    """A weight that jumps from 0 to 1 at step k is half arrived r k steps later, for short half-lives."""
    module = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        module.weight.zero_()
    average = Average(module, 0.02)
    for step in range(1, 10_001):
        average.update(module, step)
    with torch.no_grad():
        module.weight.fill_(1)
    for step in range(10_001, 10_201):
        average.update(module, step)
    assert average.weights["weight"].item() == pytest.approx(0.5, abs=0.006)


def test_the_target_average_follows_the_recipe():
    recipe = kit.RECIPES["shortcut"]()
    seen = []
    flow_map = kit.student(recipe)
    previous = flow_map.net.last.weight.detach().clone()

    def hook(event):
        seen.append(
            (
                event.state.student.net.last.weight.detach().clone(),
                event.state.objective.ema.net.last.weight.clone(),
            )
        )

    fit(recipe, flow_map, kit.toy(), kit.run_of(steps=22), hooks=[hook])
    for step, (weight, target) in enumerate(seen, 1):
        decay = min(0.7, (1 + step) / (10 + step))
        previous = decay * previous + (1 - decay) * weight
        torch.testing.assert_close(target, previous)
    assert decay == 0.7


def test_hooks_see_every_step():
    events = []
    run = kit.run_of(steps=5)
    recipe = kit.RECIPES["lsd"]()

    def hook(event):
        assert isinstance(event, Event)
        events.append(
            (
                event.state.step,
                event.last,
                event.due(3),
                event.norm > 0,
                event.run == run,
                dict(event.loss),
            )
        )

    state = fit(recipe, kit.student(recipe), kit.toy(), run, hooks=[hook])
    assert state.step == 5
    assert [row[:3] for row in events] == [
        (1, False, False), (2, False, False), (3, False, True), (4, False, False), (5, True, True),
    ]  # fmt: skip
    assert all(row[3] and row[4] for row in events)
    assert all(list(row[5]) == ["total", "diagonal", "lagrangian"] for row in events)
    # before its first step the learned variance is one: the total is the mean over the batch, and the floor
    first = events[0][5]
    assert first["total"] == pytest.approx(
        0.75 * first["diagonal"] + 0.25 * first["lagrangian"] + 0.1, rel=1e-5
    )


def test_the_gradient_is_clipped():
    norms = []

    def hook(event):
        grads = [p.grad for p in event.state.objective.parameters() if p.grad is not None]
        norms.append((event.norm, torch.stack([g.norm() for g in grads]).norm().item()))

    kit.go("lsd", None, steps=3, clip=0.01, hooks=[hook])
    for told, left in norms:
        assert told > 0.01
        assert left == pytest.approx(0.01, rel=1e-3)


class Broken(nn.Module):
    """A network that is not finite above a source time, from a call on."""

    def __init__(self, inner, how):
        super().__init__()
        self.inner, self.how, self.armed = inner, how, False
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, s, t, **cond):
        out = self.inner(x, s, t, **cond)
        if not self.armed:
            return out
        if self.how == "value":
            return torch.where((s > 0.8).reshape(-1, 1, 1, 1), out / 0, out)
        return out + self.weight.abs().sqrt()  # finite, but its slope is not


@pytest.mark.parametrize("how", ["value", "gradient"])
def test_what_is_not_finite_stops_the_run_and_changes_nothing(how, tmp_path):
    recipe = get("flow_matching")
    flow_map = NetFlowMap(Broken(kit.network(), how), recipe.interpolant, local=True)
    kept = {}

    def arm(event):
        if event.state.step == 5:
            flow_map.net.armed = True
            kept.update({k: v.clone() for k, v in event.state.tensors().items()})
            kept["files"] = files(tmp_path / "checkpoints")
            held.append(event.state)

    held = []
    sentence = {
        "value": r"loss is not finite at step 5: term 'diagonal', \d+ of 16 rows, first at times "
        r"\(s=0\.[89]\d+, t=0\.[89]\d+\).*nothing was updated, and the last checkpoint is intact",
        "gradient": r"gradient is not finite at step 5 though the loss is; first in student\..*nothing was updated",
    }[how]
    with pytest.raises(TrainingError, match=sentence):
        fit(recipe, flow_map, kit.toy(), kit.run_of(), out=tmp_path, hooks=[arm])
    state = held[0]
    assert state.step == 5
    for key, value in state.tensors().items():
        if key != "generator":  # the draw of the step that failed
            assert torch.equal(value, kept[key]), key
    assert files(tmp_path / "checkpoints") == kept["files"]
    assert checkpoint.locate(tmp_path).name == "step-00000004"
    assert [row["step"] for row in kit.metrics(tmp_path)] == [1, 2, 3, 4, 5][
        : len(kit.metrics(tmp_path))
    ]


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_rows_that_are_not_finite_are_counted():
    recipe = kit.RECIPES["lsd"]()
    data = kit.toy()
    data.x[11] = math.inf
    order = lambda step: torch.arange(16) if step == 1 else torch.arange(16) + 20
    with pytest.raises(
        TrainingError, match=r"at step 1: term 'diagonal', 1 of 12 rows, first at times \(s=0"
    ):
        fit(recipe, kit.student(recipe), data, kit.run_of(), order=order)
    order = lambda step: torch.arange(16) - 2
    with pytest.raises(TrainingError, match=r"at step 0: term 'lagrangian', 1 of 4 rows"):
        fit(recipe, kit.student(recipe), data, kit.run_of(), order=order)


@pytest.mark.parametrize("weight", ["given", "learned"])
def test_a_weight_that_is_not_finite_is_found(weight):
    recipe = get("flow_matching")
    term = recipe.terms[0]
    if weight == "given":
        term = replace(term, weight=lambda path, s, t: torch.where(s > 0.5, math.inf, 1.0))
        recipe = replace(recipe, terms=(term,))
        match = r"term 'diagonal', \d+ of 16 rows, first at times \(s=0\.[5-9]"
        hooks = []
    else:
        recipe, match = kit.RECIPES["lsd"](), r"at step 1: term 'diagonal', 12 of 12 rows"

        def hook(event):
            with torch.no_grad():
                event.state.objective.logvar.last.bias.fill_(math.nan)

        hooks = [hook]
    with pytest.raises(TrainingError, match=match):
        fit(recipe, kit.student(recipe), kit.toy(), kit.run_of(), hooks=hooks)


def test_progress_is_a_line_of_text(monkeypatch):
    out = io.StringIO()
    kit.go("lsd", None, steps=4, hooks=[Progress("[red]lsd :bug:", out, every=0.0)])
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("[red]lsd :bug:  step 1   25%  total ")
    assert "  diagonal " in lines[0]
    assert lines[0].endswith(" left")
    assert " samples/s  " in lines[3]
    assert "100%" in lines[3]
    assert "done in 0:0" in lines[3]
    rare = io.StringIO()
    kit.go("lsd", None, steps=4, hooks=[Progress("lsd", rare, every=1e6)])
    assert len(rare.getvalue().splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (605, "10:05"),
        (3599.7, "1:00:00"),
        (36_061, "10:01:01"),
    ],
)
def test_clock(seconds, text):
    assert _clock(seconds) == text


def test_samples_per_second():
    rates = []
    kit.go(
        "lsd", None, steps=30, hooks=[lambda event: rates.append((event.rate, event.state.seconds))]
    )
    rate, end = rates[-1]
    assert rate == pytest.approx(20 * 16 / (end - rates[-21][1]), rel=1e-6)


# what a user may bring


def test_data_without_labels():
    recipe = get("lsd", channels=8)
    data = TensorData("plain", kit.toy().x)
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = kit.network(classes=0)

        def forward(self, x, s, t, **cond):
            seen.append(sorted(cond))
            return self.inner(x, s, t, **cond)

    assert fit(recipe, NetFlowMap(Net()), data, kit.run_of(steps=2)).step == 2
    assert seen
    assert not any(seen)
    fit(recipe, NetFlowMap(Net()), kit.toy(), kit.run_of(steps=1))
    assert seen[-1] == ["label"]
    guided = replace(recipe, guidance=Guidance({"label": 3}))
    with pytest.raises(RecipeError, match="guidance drops the conditions"):
        fit(guided, NetFlowMap(Net()), data, kit.run_of(steps=1))


def test_labels_are_dropped_at_the_asked_share():
    recipe = replace(get("flow_matching"), guidance=Guidance({"label": 3}, dropout=0.25))
    labels = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = kit.network()

        def forward(self, x, s, t, label):
            labels.append(label)
            return self.inner(x, s, t, label=label)

    fit(recipe, NetFlowMap(Net(), local=True), kit.toy(), kit.run_of(steps=60))
    share = (torch.cat(labels) == 3).double().mean().item()
    assert share == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 960))  # 5 sigma


def test_a_batch_larger_than_the_data():
    assert kit.go("mean_flow", None, batch=80, steps=2).step == 2


def test_no_data():
    class Empty:
        def __len__(self):
            return 0

    with pytest.raises(DataError, match="n >= 1"):
        fit(get("lsd"), kit.student(get("lsd")), Empty(), kit.run_of())


def test_flip_mirrors_half_of_the_images_and_refuses_points():
    recipe = get("flow_matching")
    data = TensorData("ramp", torch.arange(4.0).expand(8, 1, 3, 4).contiguous())
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))

        def forward(self, x, s, t):
            seen.append((x, s))
            return self.w * x

    # at s near 0 the point is the image itself
    law = lambda n, generator, progress: Times(*(torch.full((n,), 1e-4),) * 3)
    near = replace(recipe, terms=(replace(recipe.terms[0], times=law),))
    fit(near, NetFlowMap(Spy(), local=True), data, kit.run_of(steps=40))
    turned = torch.cat([(x[:, 0, 0, 0] > 1.5) for x, _ in seen]).double().mean().item()
    assert turned == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(640))  # 5 sigma
    points = TensorData("points", torch.randn(20, 2))
    net = kit.build(kit.settings(classes=0) | {"shape": [2]})
    with pytest.raises(DataError, match="flip mirrors images"):
        fit(recipe, NetFlowMap(net, local=True), points, kit.run_of())


def test_a_teacher_that_is_the_student_is_frozen_as_a_copy():
    recipe = kit.RECIPES["progressive_distillation"]()
    flow_map = kit.student(recipe)
    before = flow_map.net.last.weight.detach().clone()
    state = fit(recipe, flow_map, kit.toy(), kit.run_of(steps=12), teacher=flow_map)
    assert all(p.requires_grad for p in flow_map.parameters())
    assert not torch.equal(flow_map.net.last.weight, before)
    assert state.objective.teacher is not flow_map


def test_a_teacher_is_left_as_it_was():
    recipe = kit.RECIPES["progressive_distillation"]()
    teacher = kit.student(recipe, seed=2)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    fit(recipe, kit.student(recipe), kit.toy(), kit.run_of(steps=12), teacher=teacher)
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    with pytest.raises(RecipeError, match="learns from a teacher: give one"):
        fit(recipe, kit.student(recipe), kit.toy(), kit.run_of())


def test_a_frozen_student_is_refused():
    recipe = kit.RECIPES["lsd"]()
    with pytest.raises(TrainingError, match=r"come frozen: call flow_map.requires_grad_\(True\)"):
        fit(recipe, kit.student(recipe).requires_grad_(False), kit.toy(), kit.run_of())
    with pytest.raises(TrainingError, match="no parameter of the student"):
        fit(
            get("flow_matching"),
            NetFlowMap(lambda x, s, t: -x, local=True),
            kit.toy(),
            kit.run_of(),
        )


def test_the_student_is_ready_to_sample_after_a_run():
    recipe = kit.RECIPES["lsd"]()
    flow_map = kit.student(recipe)
    state = fit(recipe, flow_map, kit.toy(), kit.run_of(steps=1))
    assert state.student is flow_map
    assert not flow_map.training
