"""Checkpoints are complete or absent, refuse what they are not, and give back the map that was saved."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import train_kit as kit
from torch import nn

from flowmaps.core.flow_map import FlowMap, NetFlowMap
from flowmaps.core.interpolant import INTERPOLANTS, linear
from flowmaps.core.parametrization import PARAMETRIZATIONS, Average
from flowmaps.errors import CheckpointError
from flowmaps.recipes import get
from flowmaps.train import checkpoint, fit
from flowmaps.train.setup import config_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "run"
    kit.go("lsd", out, steps=8)
    return out


@pytest.fixture
def out(made, tmp_path):
    """A copy of a run that may be broken."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def newest(out):
    return checkpoint.locate(out)


def change(out, **values):
    file = newest(out) / "about.json"
    about = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in about.items() if value is not ...}))


@pytest.mark.parametrize("cut", [1, 5000])
def test_truncated_weights_are_refused_and_say_what_is_left(out, cut):
    weights = newest(out) / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-cut])
    before = snapshot(out / "checkpoints")
    sentence = r"is truncated or altered: it has \d+ bytes and should have \d+; the run also has step-00000004: delete"
    with pytest.raises(CheckpointError, match=sentence):
        checkpoint.load(out)
    with pytest.raises(CheckpointError, match="truncated"):
        kit.go("lsd", out, resume=True)
    assert snapshot(out / "checkpoints") == before
    shutil.rmtree(newest(out))
    assert kit.go("lsd", out, resume=True).step == kit.STEPS


def test_weights_of_the_right_size_that_are_garbage_are_refused(out):
    weights = newest(out) / "state.safetensors"
    weights.write_bytes(bytes(len(weights.read_bytes())))
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(out)


def test_missing_weights_are_refused(out):
    (newest(out) / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match="it has 0 bytes"):
        checkpoint.load(out)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not readable json"),
        ('{"format": 1, ', "not readable json"),
        ("\x00\xff", "not readable json"),
        ("[" * 100_000, "not readable json"),
        ('{"format": ' + "9" * 5000 + "}", "not readable json"),
        ("[1, 2]", "not written by flowmaps"),
        ('{"model_type": "unet"}', "not written by flowmaps"),
        ('{"format": "one", "flow_map": {}}', "not written by flowmaps"),
        (
            '{"format": 99, "flow_map": {}, "flowmaps": "9.9"}',
            r"format 99 \(flowmaps 9.9\).*upgrade",
        ),
        ('{"format": 1, "flow_map": {}}', "was altered: it has no step, seconds, bytes"),
    ],
)
def test_foreign_and_newer_manifests_are_refused(out, text, match):
    (newest(out) / "about.json").write_bytes(text.encode("latin-1"))
    before = snapshot(out)
    with pytest.raises(CheckpointError, match=match):
        checkpoint.load(out)
    with pytest.raises(CheckpointError, match=match):
        kit.go("lsd", out, resume=True)
    assert snapshot(out) == before


def test_missing_folders(tmp_path):
    with pytest.raises(CheckpointError, match="it does not exist"):
        checkpoint.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="it holds no complete checkpoint"):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        kit.go("lsd", tmp_path / "nothing", resume=True)
    with pytest.raises(CheckpointError, match="which was not given"):
        kit.go("lsd", None, resume=True)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        config_of(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable json"):
        config_of(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be made a folder"):
        kit.go("lsd", tmp_path / "file")


def test_strings_and_paths_name_the_same_run(out):
    newest_one = checkpoint.load(str(out)).path
    assert newest_one == checkpoint.load(out).path == checkpoint.load(out / "checkpoints").path
    assert checkpoint.load(newest_one).about["step"] == 8
    assert checkpoint.load(out / "checkpoints" / "step-00000004").about["step"] == 4


def test_an_occupied_folder_is_refused(out):
    before = snapshot(out)
    with pytest.raises(CheckpointError, match=r"already holds a run.*nothing was overwritten"):
        kit.go("lsd", out)
    shutil.rmtree(out / "checkpoints")  # a run that has not come to its first checkpoint
    with pytest.raises(CheckpointError, match="already holds a run"):
        kit.go("lsd", out)
    assert snapshot(out) == {p: b for p, b in before.items() if "checkpoints" not in p.parts}


def test_half_written_drafts_are_ignored_and_cleaned(out):
    draft = out / "checkpoints" / ".step-00000099.1234"
    shutil.copytree(newest(out), draft)
    broken = out / "checkpoints" / "step-00000050"  # what a kill left of a rotation
    broken.mkdir()
    (broken / "state.safetensors").write_bytes(b"half")
    assert newest(out).name == "step-00000008"
    kit.go("lsd", out, resume=True)
    assert not draft.exists()


def test_a_wrong_configuration_is_refused_on_resume(out):
    before = snapshot(out / "checkpoints")
    recipe = get("lsd", channels=9)
    with pytest.raises(CheckpointError, match="made with another recipe"):
        fit(recipe, kit.student(recipe), kit.toy(), kit.run_of(), out=out, resume=True)
    recipe = kit.RECIPES["lsd"]()
    with pytest.raises(CheckpointError, match="made with another flow_map"):
        fit(recipe, kit.student(recipe), kit.toy(), kit.run_of(), out=out, resume=True)
    about = {"flow_map": json.loads((newest(out) / "about.json").read_text())["flow_map"]}
    wide = NetFlowMap(kit.build(kit.settings() | {"width": 24}), recipe.interpolant)
    with pytest.raises(CheckpointError, match="do not fit this run's network"):
        fit(recipe, wide, kit.toy(), kit.run_of(), out=out, resume=True, about=about)
    data = replace(kit.toy(), classes=("a", "b", "d"))
    with pytest.raises(CheckpointError, match="made with another data"):
        fit(recipe, kit.student(recipe), data, kit.run_of(), out=out, resume=True, about=about)
    assert snapshot(out / "checkpoints") == before


def test_addresses_in_a_printed_recipe_do_not_matter(out):
    about = json.loads((newest(out) / "about.json").read_text())
    change(out, recipe=about["recipe"] | {"value": "f at 0x7f01> " + about["recipe"]["value"]})
    moved = {key: about[key] for key in ("flow_map", "recipe")}
    moved["recipe"] = moved["recipe"] | {"value": "f at 0x7f02> " + moved["recipe"]["value"]}
    recipe = kit.RECIPES["lsd"]()
    state = fit(
        recipe, kit.student(recipe), kit.toy(), kit.run_of(), out=out, resume=True, about=moved
    )
    assert state.step == kit.STEPS


def test_averages_are_chosen_by_number(out):
    stored = kit.tensors(out)
    for ema, prefix in ((0, "ema.0"), (1, "ema.1"), (None, "student")):
        loaded = checkpoint.load(out, ema=ema).flow_map
        assert not loaded.training
        for name, p in loaded.named_parameters():
            assert torch.equal(p, stored[f"{prefix}.{name}"]), name
            assert not p.requires_grad
    default = checkpoint.load(out).flow_map.state_dict()
    assert torch.equal(default["net.last.weight"], stored["ema.0.net.last.weight"])
    assert not torch.equal(stored["ema.0.net.last.weight"], stored["student.net.last.weight"])
    with pytest.raises(
        CheckpointError, match=r"no moving average number 2; it has 2, of half-lives \[0.05, 0.2\]"
    ):
        checkpoint.load(out, ema=2)


def test_the_state_gives_its_averages(tmp_path):
    state = kit.go("lsd", tmp_path / "run", steps=3)
    loaded = checkpoint.load(tmp_path / "run", ema=1).flow_map
    average = state.averaged(1)
    for (name, p), q in zip(average.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert p.device == q.device
    assert not any(p.requires_grad for p in average.parameters())
    assert all(p.requires_grad for p in state.student.parameters())
    bare = kit.go("lsd", None, steps=1, ema=())
    assert torch.equal(bare.averaged().net.last.weight, bare.student.net.last.weight)


def test_a_checkpoint_tells_what_it_was_trained_on(made):
    found = checkpoint.load(made)
    assert (found.shape, found.classes) == (kit.SHAPE, kit.CLASSES)
    assert found.about["step"] == 8
    assert found.about["recipe"]["name"] == "lsd"
    assert found.about["torch"] == torch.__version__


@pytest.mark.parametrize("keep", [1, 3])
def test_rotation_keeps_the_newest(tmp_path, keep):
    kit.go("lsd", tmp_path, steps=9, save_every=2, keep=keep)
    names = [path.name for path in checkpoint.complete(tmp_path / "checkpoints")]
    assert names == [f"step-{step:08d}" for step in (2, 4, 6, 8, 9)][-keep:]


def test_order_of_long_runs(tmp_path):
    for name in ("step-99999999", "step-100000000", "step-00000005"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "about.json").touch()
    assert [path.name for path in checkpoint.complete(tmp_path)][-1] == "step-100000000"


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "where", ["save_file", "_flush", "Path.mkdir", "Path.write_text", "Path.rename"]
)
def test_a_full_disk_loses_nothing(out, where, monkeypatch):
    state = kit.go("lsd", out.with_name("other"), steps=9)
    before = snapshot(out / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(f"flowmaps.train.checkpoint.{where}", no_space)
        sentence = r"step 9 could not be written .*No space left.*the last complete one is .*step-00000008; free"
        with pytest.raises(CheckpointError, match=sentence):
            checkpoint.save(out, state)
    assert snapshot(out / "checkpoints") == before
    assert checkpoint.load(out).about["step"] == 8
    assert checkpoint.save(out, state) == newest(out)


def test_a_full_disk_at_the_first_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_file", no_space)
    with pytest.raises(CheckpointError, match="there is no earlier one"):
        kit.go("lsd", tmp_path / "run")
    monkeypatch.undo()
    assert kit.go("lsd", tmp_path / "run", resume=True).step == kit.STEPS


def test_metrics_that_cannot_be_written(tmp_path, monkeypatch):
    def hook(event):
        if event.state.step == 6:
            monkeypatch.setattr("flowmaps.train.hooks.Path.open", no_space)

    sentence = (
        r"metrics of step 6 could not be written .*No space left.*the checkpoints are intact: free"
    )
    with pytest.raises(CheckpointError, match=sentence):
        kit.go("lsd", tmp_path, hooks=[hook])
    monkeypatch.undo()
    assert kit.go("lsd", tmp_path, resume=True).step == kit.STEPS
    assert [row["step"] for row in kit.metrics(tmp_path)] == list(range(1, 13))


def test_a_real_limit_on_the_size_of_files(tmp_path, server):
    out = tmp_path / "run"
    process = server.Process(target=kit.full_disk, args=(str(out), 5))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    told = out.with_suffix(".end").read_text()
    assert told.startswith("CheckpointError: the checkpoint of step 8 could not be written")
    assert "the last complete one is" in told
    assert "step-00000004" in told
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000004"]
    assert checkpoint.load(out).about["step"] == 4
    assert kit.go("mean_flow", out, resume=True).step == kit.STEPS


class Own(nn.Module):
    """A user's network: tied weights, a buffer, a frozen parameter, no labels."""

    def __init__(self, width=12):
        super().__init__()
        self.up = nn.Linear(12, width)
        self.again = self.up
        self.down = nn.Linear(width, 12)
        self.fixed = nn.Parameter(torch.tensor([0.3]), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, s, t, label=None):
        if self.training:
            self.calls = self.calls.detach() + 1
        h = self.again(self.up(x.flatten(1)) + s[:, None] - self.fixed * t[:, None])
        return self.down(torch.tanh(h)).reshape(x.shape)


def test_a_network_of_ones_own(tmp_path):
    recipe = get("flow_matching")
    torch.manual_seed(3)
    flow_map = NetFlowMap(Own(), linear(), Average(), local=True)
    state = fit(recipe, flow_map, kit.toy(), kit.run_of(steps=6), out=tmp_path / "run")
    with pytest.raises(
        CheckpointError, match="a network of your own: pass one of the same shape as net="
    ):
        checkpoint.load(tmp_path / "run")
    with pytest.raises(CheckpointError, match="do not fit the network that was given"):
        checkpoint.load(tmp_path / "run", net=Own(width=13))
    found = checkpoint.load(tmp_path / "run", net=Own()).flow_map
    x, s = torch.randn(5, *kit.SHAPE), torch.full((5,), 0.7)
    # the average of tied weights is one average
    assert torch.equal(found.mean_velocity(x, s, s), state.averaged().mean_velocity(x, s, s))
    assert found.net.calls == flow_map.net.calls > 0
    assert found.local
    torch.manual_seed(4)
    again = NetFlowMap(Own(), linear(), Average(), local=True)
    more = fit(recipe, again, kit.toy(), kit.run_of(steps=8), out=tmp_path / "run", resume=True)
    assert more.step == 8


class OwnMap(FlowMap):
    def __init__(self):
        super().__init__()
        self.interpolant = linear()
        self.net = Own()

    def mean_velocity(self, x, s, t, **cond):
        return self.net(x, s, t)


def test_a_flow_map_of_ones_own_resumes_but_cannot_be_loaded(tmp_path):
    """Its former self, once it is the teacher, is kept."""
    recipe = get("progressive_distillation", stages=2)
    start = OwnMap().state_dict()

    def go(out, steps, resume=False):
        flow_map, teacher = OwnMap(), OwnMap()
        flow_map.load_state_dict(start)
        teacher.load_state_dict(start)
        run = kit.run_of(steps=8, save_every=steps, keep=9)
        return fit(recipe, flow_map, kit.toy(), run, teacher=teacher, out=out, resume=resume)

    go(tmp_path / "a", 6)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-00000008")
    go(tmp_path / "b", 6, resume=True)
    assert kit.same(tmp_path / "a", tmp_path / "b") == []
    with pytest.raises(CheckpointError, match="a FlowMap class or an interpolant of your own"):
        checkpoint.load(tmp_path / "a")


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_what_is_loaded_is_what_was_saved_bit_for_bit(name, path, tmp_path):
    """Every parametrization on every path: description, weights and outputs; settings that are not the defaults."""
    settings = {
        "average": {},
        "denoised": {"prediction": "eps"},
        "edm_two_time": {"sigma_data": 0.7123456789},
        "boundary": {"sigma_data": 0.61, "sigma_min": 0.0031},
    }[name]
    made = PARAMETRIZATIONS[name]
    parametrization = made() if name == "average" else made(path, **settings)
    recipe = replace(get("flow_matching"), interpolant=path, parametrization=parametrization)
    flow_map = NetFlowMap(kit.network(), path, parametrization)
    about = {"flow_map": checkpoint.describe_map(flow_map, kit.settings())}
    run = kit.run_of(steps=1, flip=False, batch=4, warmup=0)
    state = fit(recipe, flow_map, kit.toy(), run, out=tmp_path, about=about)
    found = checkpoint.load(tmp_path, ema=None).flow_map
    assert found.interpolant == path
    assert found.parametrization == parametrization
    assert found.local == flow_map.local
    x = torch.randn(5, *kit.SHAPE)
    s, t = torch.tensor([0.9, 0.31, 0.7, 0.52, 0.11]), torch.tensor([0.2, 0.3, 0.7, 0.9, 0.05])
    label = torch.tensor([0, 1, 2, 3, 0])
    assert torch.equal(found(x, s, t, label=label), state.student(x, s, t, label=label))


@pytest.mark.parametrize(
    "path", [INTERPOLANTS["vp"](beta_min=0.2), INTERPOLANTS["ve"](sigma_max=33.3)]
)
def test_settings_of_a_path_are_kept(path):
    flow_map = NetFlowMap(kit.network(), path)
    described = json.loads(json.dumps(checkpoint.describe_map(flow_map, kit.settings())))
    assert checkpoint.build_map(described).interpolant == path != INTERPOLANTS[path.name]()
