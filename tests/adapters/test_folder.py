"""A folder of diffusers is taken wherever a checkpoint is: the same map as its run's, taught new data, and a folder again."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra: pip install 'flowmaps[diffusers]'")

import diffusers
from torch import nn

from flowmaps.adapters.diffusers import denoiser, flow_map, velocity
from flowmaps.adapters.export import save
from flowmaps.adapters.folder import around
from flowmaps.adapters.schedule import schedule, walking
from flowmaps.cli.main import main
from flowmaps.core.interpolant import linear
from flowmaps.data import TensorData
from flowmaps.errors import AdapterError
from flowmaps.testing.zoo import ZOO
from flowmaps.train import checkpoint

FAST = ["--run.steps", "3", "--run.batch", "4", "--run.precision", "fp32", "--run.lr", "1e-2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose student ends at a floor: 562 timesteps are left of 1,000, which no few steps divide."""
    place = tmp_path_factory.mktemp("folder")
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
    )  # fmt: skip
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    pipeline.save_pretrained(place / "ddpm")
    told = ["--teacher", str(place / "ddpm"), "--data", "digits", "--out", str(place / "run")]
    assert main(["distill", *told, *FAST]) == 0
    return place / "run"


def test_a_folder_is_the_map_of_its_run(run: Path, gen: torch.Generator) -> None:
    """At every time, those beyond the floor too; the step of the scheduler that it carries is a table's, not a flow's."""
    ours, folder = checkpoint.load(run), checkpoint.load(run / "distilled")
    assert folder.shape == ours.shape == (1, 8, 8)
    assert folder.classes == ()
    assert folder.path == run / "distilled"
    scheduler = denoiser(folder.flow_map).schedule.scheduler
    assert type(scheduler).__name__ == "FlowMapDDIMScheduler"
    assert schedule(scheduler).path.name == "tabulated"
    x = torch.randn(5, 1, 8, 8, generator=gen)
    for s, t in ((1.0, 0.0), (0.93, 0.2), (0.7, 0.0), (0.5, 0.5)):
        torch.testing.assert_close(
            folder.flow_map(x, s, t), ours.flow_map(x, s, t), atol=1e-6, rtol=0
        )
    with pytest.raises(Exception, match="no moving average number 1"):
        checkpoint.load(run / "distilled", ema=1)


def test_commands_take_a_folder(run: Path, tmp_path: Path, capsys) -> None:
    """Sampled as its run is, walked where it has one time, taught, and a folder that is taken again."""
    folder = str(run / "distilled")
    for name, model in (("run", str(run)), ("folder", folder)):
        assert main(["sample", model, "-n", "3", "--out", str(tmp_path / f"{name}.npy")]) == 0
    assert (tmp_path / "run.npy").read_bytes() == (tmp_path / "folder.npy").read_bytes()
    walk = ["--solver", "ddim", "--steps", "2", "--out", str(tmp_path / "walk.npy")]
    assert main(["sample", str(run.parent / "ddpm"), "-n", "3", *walk]) == 0
    mine = tmp_path / "mine"
    taught = ["finetune", folder, "--data", "digits", "--out", str(mine), *FAST]
    capsys.readouterr()
    assert main(taught) == 0
    assert f"{mine}/distilled  (diffusers)" in capsys.readouterr().out
    index = json.loads((mine / "distilled" / "model_index.json").read_text())
    assert index["_class_name"] == ["flow_map", "FlowMapDDPMPipeline"]
    card = (mine / "distilled" / "README.md").read_text()
    assert "| data | steps | before | after |" in card
    before, after = (checkpoint.load(p) for p in (run, mine / "distilled"))
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (before.flow_map(x, 1.0, 0.0) - after.flow_map(x, 1.0, 0.0)).abs().max() > 1e-3
    torch.testing.assert_close(
        after.flow_map(x, 1.0, 0.0), checkpoint.load(mine).flow_map(x, 1.0, 0.0), atol=1e-6, rtol=0
    )


def test_a_model_of_one_time_is_no_map_to_teach(run: Path, tmp_path: Path, capsys) -> None:
    told = ["finetune", str(run.parent / "ddpm"), "--data", "digits", "--out", str(tmp_path / "x")]
    assert main(told) == 2
    assert f"flowmaps distill --teacher {run.parent / 'ddpm'}" in capsys.readouterr().err


def test_a_broken_folder_says_what_it_lacks(tmp_path: Path, capsys) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(AdapterError):
        checkpoint.load(tmp_path)
    assert main(["sample", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 2
    assert "flowmaps: error:" in capsys.readouterr().err


def test_classes_are_told_by_number(
    tmp_path: Path, gen: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without a pipeline of diffusers travels with its own, and does again when its map was taught."""
    specimen = ZOO["DiT"]
    student = flow_map(velocity(specimen.build(), scheduler=specimen.scheduler(), path=linear()))
    with torch.no_grad():
        for weight in student.parameters():
            nn.init.normal_(weight, std=0.05)
    x, cond = specimen.inputs(2, gen)
    save(student.eval(), tmp_path / "dit", shape=tuple(x.shape[1:]))
    saved = checkpoint.load(tmp_path / "dit")
    assert saved.shape == tuple(x.shape[1:])
    assert saved.about["data"]["conditions"] == ["label"]
    told = saved.flow_map(x, 0.9, 0.1, label=cond["class_labels"])
    torch.testing.assert_close(told, student(x, 0.9, 0.1, **cond))
    assert around(tmp_path / "dit", student) is None
    latents = TensorData(
        "latents", torch.randn(6, *x.shape[1:], generator=gen), torch.arange(6) % 2, ("0", "1")
    )
    monkeypatch.setattr("flowmaps.train.finetune.load_data", lambda *_, **__: latents)
    taught = [
        "finetune",
        str(tmp_path / "dit"),
        "--data",
        "latents",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*taught, *FAST]) == 0
    again = checkpoint.load(tmp_path / "run" / "distilled")
    assert again.shape == saved.shape
    assert again.classes == saved.classes
    assert walking(denoiser(saved.flow_map).schedule).path == denoiser(student).schedule.path
