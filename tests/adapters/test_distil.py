"""From a pipeline to a few-step map: every class learns, is saved and comes back; the command does the same from a folder."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra: pip install 'flowmaps[diffusers]'")

import diffusers
from torch import Tensor

from flowmaps import recipes
from flowmaps.adapters.diffusers import denoiser, floored, velocity
from flowmaps.adapters.export import load, save
from flowmaps.adapters.stored import build, describe
from flowmaps.cli.main import main
from flowmaps.core.flow_map import NetFlowMap
from flowmaps.core.interpolant import linear, matched
from flowmaps.data import TensorData
from flowmaps.data.told import Nothing
from flowmaps.errors import RecipeError
from flowmaps.learn.objective import Objective
from flowmaps.testing.zoo import ZOO
from flowmaps.train import Run, checkpoint, fit
from flowmaps.train.distil import bind, prepare
from flowmaps.train.run import Config, StudentConfig

SHORT = Run(steps=3, batch=4, lr=1e-3, compile="no", precision="fp32", ema=(0.05,), warmup=0)


def teacher(name: str) -> NetFlowMap:
    specimen = ZOO[name]
    options = {"scheduler": specimen.scheduler(), "constant": specimen.constant()}
    return velocity(specimen.build(), path=linear(), **options)


@dataclass
class Rows:
    """Points with all that a class of the zoo wants to be told; `Conditioned`."""

    name: str
    x: Tensor
    cond: dict[str, Tensor]
    classes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @property
    def null(self) -> dict[str, Tensor]:
        return {key: values[0] for key, values in self.cond.items()}

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Tensor) -> tuple[Tensor, None]:
        return self.x[index], None

    def conditions(self, index: Tensor) -> dict[str, Tensor]:
        return {key: values[index] for key, values in self.cond.items()}


def data_for(name: str, gen: torch.Generator) -> Rows:
    return Rows(name, *ZOO[name].inputs(6, gen))


@pytest.mark.parametrize("name", ZOO)
def test_every_class_is_distilled_saved_and_loaded(
    name: str, tmp_path: Path, gen: torch.Generator
) -> None:
    """Velocity, two-time start, twenty steps of the default recipe, and the same map from its checkpoint and its folder.

    The loss, of 32 rows drawn once, is less after the steps than before them.
    """
    field, recipe = teacher(name), recipes.get("push_forward")
    parts = bind(recipe, field, data_for(name, gen), StudentConfig(floor=0.01))
    x, cond = ZOO[name].inputs(2, gen)
    s, t = torch.tensor([0.7, 0.4]), torch.tensor([0.2, 0.0])
    rows = torch.arange(32) % len(parts.data)
    drawn = recipe.draw(parts.data.batch(rows)[0], gen, parts.data.conditions(rows))
    loss = lambda student: float(Objective(recipe, student, parts.teacher)(drawn).total.detach())
    with torch.no_grad():
        assert torch.equal(parts.flow_map.velocity(x, s, **cond), field.velocity(x, s, **cond))
        before = parts.flow_map(x, s, t, **cond)
    at_start = loss(parts.flow_map)
    state = fit(
        recipe,
        parts.flow_map,
        parts.data,
        Run(**dict(SHORT) | {"steps": 20}),
        teacher=parts.teacher,
        out=tmp_path,
        about=parts.about,
    )
    saved = checkpoint.load(tmp_path)
    with torch.no_grad():
        here = state.averaged()(x, s, t, **cond)
        assert torch.equal(here, saved.flow_map(x, s, t, **cond))
    assert (here - before).abs().max() > 1e-4
    assert loss(state.averaged()) < at_start
    averaged = state.averaged()
    assert isinstance(averaged, NetFlowMap)
    again = load(save(averaged, tmp_path / "folder"), constant=ZOO[name].constant())
    with torch.no_grad():
        torch.testing.assert_close(again(x, s, t, **cond), here, rtol=1e-5, atol=1e-5)
    assert "teacher.net" not in str(
        list(checkpoint.read(tmp_path)[1])
    )  # it is rebuilt from its folder


def test_lora_is_rebuilt_and_alone_averaged(tmp_path: Path, gen: torch.Generator) -> None:
    field, recipe = teacher("DiT"), recipes.get("push_forward")
    parts = bind(recipe, field, data_for("DiT", gen), StudentConfig(lora=2))
    state = fit(
        recipe,
        parts.flow_map,
        parts.data,
        SHORT,
        teacher=parts.teacher,
        out=tmp_path,
        about=parts.about,
    )
    tensors = checkpoint.read(tmp_path)[1]
    averaged = [key for key in tensors if key.startswith("ema.0.")]
    assert 0 < len(averaged) < len([key for key in tensors if key.startswith("student.")]) / 2
    x, cond = ZOO["DiT"].inputs(2, gen)
    with torch.no_grad():
        here = state.averaged()(x, 1.0, 0.0, **cond)
        assert torch.equal(here, checkpoint.load(tmp_path).flow_map(x, 1.0, 0.0, **cond))
        raw = checkpoint.load(tmp_path, ema=None).flow_map(x, 1.0, 0.0, **cond)
    assert torch.equal(raw, state.student(x, 1.0, 0.0, **cond))
    assert not torch.equal(raw, here)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_description_says_how_the_output_is_read(kind: str, gen: torch.Generator) -> None:
    """What the caller said against the scheduler's config comes back too."""
    specimen = ZOO["UNet2D"]
    field = velocity(specimen.build(), scheduler=specimen.scheduler(), prediction=kind)
    twin = build(json.loads(json.dumps(describe(field))), local=True)
    twin.load_state_dict(field.state_dict())
    x, _ = specimen.inputs(2, gen)
    with torch.no_grad():
        assert torch.equal(field.velocity(x, 0.4), twin.velocity(x, 0.4))
    assert twin.interpolant == field.interpolant


def unet() -> diffusers.UNet2DModel:
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )  # fmt: skip


def test_the_floor_moves_pure_noise_and_nothing_else(gen: torch.Generator) -> None:
    """DDPM's schedule ends at alpha = 0.006; with a floor of 0.05 the last timestep told is the last with alpha >= 0.05."""
    scheduler = diffusers.DDPMScheduler()
    own = velocity(unet(), scheduler=scheduler, path=linear())
    short = floored(own, 0.05)
    alphas = scheduler.alphas_cumprod.sqrt()
    told = denoiser(short).schedule
    last = int(told.timestep(torch.ones(1)))
    assert alphas[last] >= 0.05 > alphas[last + 1]
    assert torch.equal(told.scheduler.alphas_cumprod, scheduler.alphas_cumprod[: last + 1])
    x = torch.randn(3, 1, 8, 8, generator=gen)
    early = torch.tensor([0.02, 0.3, 0.9])  # alpha of the linear path, at unit norm, is above 0.05
    torch.testing.assert_close(
        short.velocity(x, early), own.velocity(x, early), rtol=1e-3, atol=1e-3
    )
    t_own, _ = matched(torch.tensor(1.0), x, short.net.own.interpolant, linear())
    assert torch.equal(t_own, torch.ones(3))
    velocities = floored(velocity(unet(), scheduler=scheduler, prediction="v_prediction"), 0.05)
    assert denoiser(velocities).schedule.scheduler is scheduler


def pipeline(folder: Path) -> str:
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).save_pretrained(folder)
    return str(folder)


FAST = ["--run.steps", "2", "--run.batch", "4", "--run.save-every", "1", "--run.precision", "fp32"]


def test_the_command_from_a_folder_to_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stops, resumes to the same bytes, and its run is sampled like any other."""
    folder = pipeline(tmp_path / "ddpm")
    common = ["--teacher", folder, "--data", "digits", "--lora", "2", *FAST]
    assert main(["distill", *common, "--out", str(tmp_path / "one")]) == 0
    assert main(["distill", *common, "--out", str(tmp_path / "two")]) == 0
    newest = tmp_path / "two" / "checkpoints" / "step-00000002"
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert main(["distill", "--resume", str(tmp_path / "two")]) == 0
    one, two = (checkpoint.read(tmp_path / name)[1] for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one if not key.startswith("optimizer"))
    assert (tmp_path / "one" / "previews" / "step-00000002.png").stat().st_size > 1000
    out = tmp_path / "x.npy"
    assert main(["sample", str(tmp_path / "one"), "-n", "3", "--out", str(out)]) == 0
    assert out.exists()
    card = (tmp_path / "one" / "distilled" / "README.md").read_text()
    assert "| steps | samples | Frechet distance to the data |\n|---|---|---|\n| 1 | 1000 |" in card
    assert main(["distill", *common, "--out", str(tmp_path / "one")]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_rules_that_move_the_source_stay_where_the_model_is_told_it(gen: torch.Generator) -> None:
    """Beyond the end of its own path a model takes all points for that end; v-prediction and rules of the target go on to 1."""
    field = velocity(unet(), scheduler=diffusers.DDPMScheduler(), path=linear())
    data = TensorData("x", torch.randn(4, 1, 8, 8, generator=gen))
    laws = {"default": {"predict": "velocity", "starts": 0.3}, "mean_flow": {}, "psd": {}}
    for name, settings in laws.items():
        recipe = bind(recipes.get(name, **settings), field, data, StudentConfig(floor=0.2)).recipe
        s, w, t = recipe.terms[-1].times(2000, gen)
        last = 0.96**0.5 / (0.2 + 0.96**0.5)  # where the straight path has the SNR of alpha = 0.2
        assert (float(s.max()) > last + 0.05) == (name == "psd")
        assert float(s.max()) > last - 0.03
        assert ((t <= w) & (w <= s)).all()
    whole = velocity(
        unet(),
        scheduler=diffusers.DDIMScheduler(
            rescale_betas_zero_snr=True, prediction_type="v_prediction"
        ),
        path=linear(),
    )
    recipe = recipes.get("mean_flow")
    assert bind(recipe, whole, data).recipe.terms == recipe.terms


def test_stages_of_several_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run starts at the averaged weights of the first; a map of another model is refused."""
    folder, first = pipeline(tmp_path / "ddpm"), tmp_path / "first"
    told = ["--teacher", folder, "--data", "digits", *FAST, "--run.lr", "0.05"]
    assert main(["distill", *told, "--recipe", "lmd", "--out", str(first)]) == 0
    for init in (first, first / "distilled"):
        config = Config(recipe="push_forward", data="digits", teacher=folder, init=str(init))
        parts = prepare(config, tmp_path / "cache")
        ours, theirs = parts.flow_map.state_dict(), checkpoint.load(first).flow_map.state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert parts.about["start"] == str(init)
    other = tmp_path / "other"
    assert main(["distill", *told, "--lora", "2", "--init", str(first), "--out", str(other)]) == 2
    assert "do not fit the student's network" in capsys.readouterr().err


def test_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pipeline(tmp_path / "ddpm")
    out = ["--out", str(tmp_path / "map"), *FAST]
    assert main(["distill", "--teacher", folder, *out]) == 0
    config = json.loads((tmp_path / "map" / "config.json").read_text())
    assert (config["recipe"], config["data"]) == ("free_flow", "none")
    assert main(["distill", "--teacher", folder, "--recipe", "lmd", *out]) == 2
    assert "learns from data" in capsys.readouterr().err


def test_recipes_that_do_not_fit_are_refused(gen: torch.Generator) -> None:
    field = teacher("UNet2D")
    with pytest.raises(RecipeError, match="reads its network as EDMTwoTime"):
        bind(recipes.get("scm"), field, data_for("UNet2D", gen))
    with pytest.raises(RecipeError, match="learns from data"):
        bind(recipes.get("push_forward"), field, Nothing((4, 8, 8)))


def test_data_that_need_nothing_are_not_looked_at() -> None:
    """The loss without data is that with any data: same draw, same points."""
    losses: list[Tensor] = []
    for x_0 in (torch.zeros(8, 4, 8, 8), torch.ones(8, 4, 8, 8)):
        recipe = recipes.get("cmt", steps=2)
        drawn = recipe.draw(x_0, torch.Generator().manual_seed(0))
        losses.append(drawn[0].x)
    assert not recipes.get("cmt").needs_data
    assert recipes.get("push_forward").needs_data
    assert torch.equal(*losses)


def test_a_jump_from_pure_noise_is_what_the_denoiser_says_of_the_data(gen: torch.Generator) -> None:
    """Beyond the end of the student's own path too, where the straight path is noisier: one stock DDIM step gives the same."""
    field = floored(
        velocity(unet(), scheduler=diffusers.DDIMScheduler(clip_sample=False), path=linear()), 0.2
    )
    net, x = denoiser(field), torch.randn(3, 1, 8, 8, generator=gen)
    last = len(net.schedule.scheduler.alphas_cumprod) - 1
    own = net.schedule.path
    with torch.no_grad():
        eps = net.model(x, last, return_dict=False)[0]
        one = torch.ones(())
        x_0 = (x - own.sigma(one) * eps) / own.alpha(one)
        torch.testing.assert_close(field(x, 1.0, 0.0), x_0, rtol=1e-4, atol=1e-4)
        s = own.alpha(one) / (own.alpha(one) + own.sigma(one))  # 1 - s: where the two paths meet
        edge = x * linear().scale(1 - s)
        torch.testing.assert_close(field(edge, 1 - s, 0.0), x_0, rtol=1e-3, atol=1e-3)
        near = field.velocity(edge, 1 - s - 1e-5), field.velocity(edge, 1 - s + 1e-5)
    torch.testing.assert_close(*near, rtol=1e-2, atol=1e-2)  # no step where the paths part
