"""Saved maps: sampled by diffusers alone as by us, loaded again, refused with a reason, pushed to a stand-in of the hub."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra: pip install 'flowmaps[diffusers]'")

import diffusers
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowmaps.adapters.carried import FlowMapModel, Jump
from flowmaps.adapters.diffusers import add_lora, denoiser, flow_map, velocity
from flowmaps.adapters.export import load, push_to_hub, save, start
from flowmaps.core.flow_map import NetFlowMap
from flowmaps.core.interpolant import linear
from flowmaps.errors import AdapterError
from flowmaps.sample import sample
from flowmaps.sample.grids import uniform
from flowmaps.testing.zoo import ZOO

# diffusers 0.42 under numpy 2
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.xdist_group("export"),  # they share a process that samples
]

SAMPLER = Path(__file__).with_name("stock_sampler.py")


def student_of(name: str, path=None, lora: int = 0, scheduler=None) -> NetFlowMap:
    """A map whose jumps matter: the embedding of the jump, or LoRA, is no longer zero."""
    specimen = ZOO[name]
    field = velocity(
        specimen.build(),
        scheduler=scheduler or specimen.scheduler(),
        constant=specimen.constant(),
        path=path,
    )
    student = flow_map(field)
    if lora:
        add_lora(student, lora)
    with torch.no_grad():
        for key, weight in student.named_parameters():
            if "lora_B" in key:
                weight.normal_(std=0.1)
        for module in student.modules():
            if isinstance(module, Jump):
                module.last.weight.normal_(std=0.3)
    return student.eval().requires_grad_(False)


def edm(kind: str = "epsilon"):
    return diffusers.EDMEulerScheduler(sigma_data=0.5, prediction_type=kind)


def latent_pipeline(student: NetFlowMap):
    """A Stable Diffusion with a random autoencoder and, as nothing is written, no text encoder."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=denoiser(student).model.backbone,
        scheduler=diffusers.PNDMScheduler(**SD), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


# %% name: (student, its pipeline, how the other process samples, its steps)
def cases():
    ddpm = student_of("UNet2D", scheduler=diffusers.DDPMScheduler())
    latent = student_of("SD 1.5 UNet", scheduler=diffusers.PNDMScheduler(**SD))
    return {
        "ddpm": (
            ddpm,
            diffusers.DDPMPipeline(ZOO["UNet2D"].build(), diffusers.DDPMScheduler()),
            "ddpm",
            (1, 4),
        ),
        "latent": (latent, latent_pipeline(latent), "stable_diffusion", (1, 4)),
        "straight": (student_of("DiT", linear()), None, "carried", (1, 5)),
        "odd": (
            student_of("DiT", scheduler=diffusers.DDPMScheduler(num_train_timesteps=957)),
            None,
            "carried",
            (4,),
        ),
        "lora": (student_of("SDXL UNet", lora=2), None, "carried", (2,)),
        "zero-snr": (
            student_of(
                "PixArt",
                scheduler=diffusers.EulerDiscreteScheduler(
                    **SD,
                    prediction_type="v_prediction",
                    rescale_betas_zero_snr=True,
                    timestep_spacing="trailing",
                ),
            ),
            None,
            "carried",
            (4,),
        ),
        "flux": (student_of("Flux"), None, "carried", (3,)),
        "sd3": (student_of("SD3"), None, "again", (3,)),
        "audio": (student_of("Stable Audio"), None, "carried", (3,)),
        "edm": (student_of("UNet2D", scheduler=edm()), None, "carried", (3,)),
        "edm-v": (student_of("UNet2D", linear(), scheduler=edm("v_prediction")), None, "carried", (3,)),
        "trigflow": (student_of("DiT", scheduler=diffusers.SCMScheduler()), None, "carried", (3,)),
        "any-flow": (student_of("AnyFlow"), None, "any_flow", (1, 3)),
    }  # fmt: skip


NAMES = {
    "ddpm": "UNet2D", "latent": "SD 1.5 UNet", "straight": "DiT", "odd": "DiT", "lora": "SDXL UNet", "zero-snr": "PixArt",
    "flux": "Flux", "sd3": "SD3", "audio": "Stable Audio", "edm": "UNet2D", "edm-v": "UNet2D", "trigflow": "DiT",
    "any-flow": "AnyFlow",
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Every case saved, and sampled by another process."""
    work, made = tmp_path_factory.mktemp("export"), cases()
    orders = []
    for name, (student, pipeline, way, steps) in made.items():
        save(student, work / name, pipeline=pipeline)
        specimen, gen = ZOO[NAMES[name]], torch.Generator().manual_seed(7)
        x, cond = specimen.inputs(2, gen)
        tensors = {"noise": x, **cond}
        for key, value in specimen.constant().items():
            parts = (
                {key: value}
                if isinstance(value, Tensor)
                else {f"{key}.{i}": v for i, v in enumerate(value)}
            )
            tensors |= parts
        save_file(tensors, work / f"{name}.safetensors")
        orders.append({"name": name, "way": way, "steps": steps})
    (work / "cases.json").write_text(json.dumps(orders))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SAMPLER, work], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: {
            "student": made[name][0],
            "folder": work / name,
            "noise": load_file(work / f"{name}.safetensors"),
            "stock": load_file(work / f"{name}.out.safetensors"),
        }
        for name in made
    }


def ours(case: dict, student: NetFlowMap, steps: int) -> Tensor:
    cond = {k: v for k, v in case["noise"].items() if k in ZOO[NAMES[case["folder"].name]].cond}
    x, times = start(student, case["noise"]["noise"], steps)
    with torch.no_grad():
        return sample(student, x, times, **cond)


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_alone_draws_our_samples(name: str, drawn: dict) -> None:
    case = drawn[name]
    for steps, theirs in case["stock"].items():
        mine = ours(case, case["student"], int(steps))
        if name == "ddpm":
            mine = (mine / 2 + 0.5).clamp(0, 1)
        d = float((mine - theirs).abs().max() / theirs.abs().max())
        print(name, steps, d)
        assert d < 1e-5


def test_the_walk_goes_from_noise_to_data(drawn: dict) -> None:
    """In equal steps of a table's own time, so that one step is one jump over all of it."""
    for name, case in drawn.items():
        for steps in (1, 4):
            times = start(case["student"], case["noise"]["noise"], steps)[1]
            assert len(times) == steps + 1
            assert float(times[0]) > 0.93, (
                name
            )  # where Stable Diffusion's table ends on the straight path
            assert float(times[-1]) == 0.0
            assert bool((times.diff() < 0).all())
    torch.testing.assert_close(
        start(drawn["ddpm"]["student"], drawn["ddpm"]["noise"]["noise"], 4)[1], uniform(4)
    )


@pytest.mark.parametrize("name", ["ddpm", "straight", "lora", "audio", "edm-v", "any-flow"])
def test_loaded_again_it_is_the_same_map(name: str, drawn: dict) -> None:
    case = drawn[name]
    again = load(case["folder"], constant=ZOO[NAMES[name]].constant())
    assert again.interpolant == case["student"].interpolant
    torch.testing.assert_close(
        ours(case, again, 2), ours(case, case["student"], 2), rtol=1e-5, atol=1e-5
    )


def test_the_student_stays_as_it_is(drawn: dict) -> None:
    model = denoiser(drawn["lora"]["student"]).model
    assert model.peft_config
    assert model._followed is None


def test_a_pipeline_of_another_kind_takes_the_map_too(drawn: dict) -> None:
    """The map reads the next timestep off the scheduler of whatever pipeline it is put into."""
    case = drawn["latent"]
    model = denoiser(load(case["folder"])).model
    x, cond = (
        case["noise"]["noise"],
        {"encoder_hidden_states": case["noise"]["encoder_hidden_states"]},
    )
    scheduler = diffusers.EulerDiscreteScheduler(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(4)

    class Pipeline:
        pass

    pipeline = Pipeline()
    pipeline.scheduler = scheduler
    model.follow(pipeline)
    y = (
        x * (scheduler.init_noise_sigma**2 + 1) ** 0.5
    )  # its own start leaves the data's variance out
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = model(scheduler.scale_model_input(y, t), t, **cond, return_dict=False)[0]
            y = scheduler.step(out, t, y).prev_sample
    torch.testing.assert_close(y, ours(case, case["student"], 4), rtol=1e-4, atol=1e-4)


def test_the_card(tmp_path: Path) -> None:
    rows = [{"steps": 1, "Frechet distance": 12.34567}, {"steps": 4, "Frechet distance": 3.0}]
    pipeline = diffusers.DDPMPipeline(ZOO["UNet2D"].build(), diffusers.DDPMScheduler())
    pipeline.register_to_config(_name_or_path="someone/teacher")
    save(student_of("UNet2D"), tmp_path / "map", pipeline=pipeline, results=rows, notes="Digits.")
    text = (tmp_path / "map" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    about = yaml.safe_load(front)
    assert (about["base_model"], about["library_name"]) == ("someone/teacher", "diffusers")
    assert "| 1 | 12.35 |\n| 4 | 3 |" in body
    assert "Digits." in body
    code = body.split("```python\n")[1].split("```")[0]
    assert "trust_remote_code=True" in code
    compile(code, "card", "exec")


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    student, place = student_of("DiT"), tmp_path / "map"
    place.mkdir()
    (place / "thesis.tex").write_text("years of work")
    with pytest.raises(AdapterError, match=r"map is in the way.*overwrite=True"):
        save(student, place)
    assert [p.name for p in tmp_path.iterdir()] == ["map"]
    save(student, place, overwrite=True)
    assert not (place / "thesis.tex").exists()


def test_what_cannot_be_saved_or_loaded(tmp_path: Path, drawn: dict) -> None:
    field = velocity(ZOO["DiT"].build(), scheduler=ZOO["DiT"].scheduler())
    with pytest.raises(AdapterError, match="a velocity has one time and no jumps to save"):
        save(field, tmp_path / "map")
    diffusers.DDPMPipeline(ZOO["UNet2D"].build(), diffusers.DDPMScheduler()).save_pretrained(
        tmp_path / "teacher"
    )
    with pytest.raises(AdapterError, match=r"UNet2DModel, which knows one time only: velocity"):
        load(tmp_path / "teacher")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match=r"neither model_index\.json"):
        load(tmp_path / "empty")
    with pytest.raises(AdapterError, match="cannot be loaded as a pipeline"):
        save(student_of("DiT"), tmp_path / "map", pipeline=tmp_path / "empty")
    broken = tmp_path / "broken"
    shutil.copytree(drawn["straight"]["folder"], broken)
    weights = broken / "flow_map" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:99])
    with pytest.raises(AdapterError, match=r"cannot be loaded as FlowMapModel .*: save it again"):
        load(broken)


def test_push_to_a_stand_in_of_the_hub(
    tmp_path: Path, drawn: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's two calls land in a folder; what lies there is the map."""
    hub, calls = tmp_path / "hub", []

    class Repo(str):
        repo_id = "someone/map"

    def create_repo(self, name, *, private, exist_ok):
        calls.append((name, private, exist_ok))
        return Repo("https://hub/someone/map")

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, hub / repo_id)

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    folder = drawn["straight"]["folder"]
    assert push_to_hub(folder, "someone/map", private=True) == "https://hub/someone/map"
    assert calls == [("someone/map", True, True)]
    sent = {p.relative_to(hub / "someone/map") for p in (hub / "someone/map").rglob("*.*")}
    assert {Path("README.md"), Path("flow_map.py"), Path("flow_map/flow_map.py")} <= sent
    assert isinstance(denoiser(load(hub / "someone/map")).model, FlowMapModel)
    with pytest.raises(AdapterError, match=r"has no model_index\.json"):
        push_to_hub(tmp_path, "someone/map")

    def refused(self, name, **options):
        raise OSError("401 Unauthorized")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refused)
    with pytest.raises(AdapterError, match=r"401 Unauthorized.*hf auth login"):
        push_to_hub(folder, "someone/map")


def test_the_command_writes_a_graph_of_a_saved_map(
    drawn: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the straight path too, where a jump reads its own times off the model's table."""
    from flowmaps.cli.main import main

    case, file = drawn["straight"], tmp_path / "jump.pt2"
    command = ["export", str(case["folder"]), "--out", str(file), "--json"]
    assert main(command) == 2
    assert "pass by name what your checkpoint needs" in capsys.readouterr().err
    assert main([*command, "--cond", "class_labels"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["inputs"] == {"x": [4, 8, 8], "s": [], "t": [], "class_labels": []}
    assert said["error"] < 1e-5
    with file.open("rb") as stream:
        jump = torch.export.load(stream).module()
    x, labels = torch.randn(3, 4, 8, 8), torch.tensor([1, 2, 3])
    s, t = torch.tensor([1.0, 0.8, 0.3]), torch.tensor([0.0, 0.5, 0.1])
    with torch.no_grad():
        expected = case["student"](x, s, t, class_labels=labels)
        torch.testing.assert_close(
            jump(x, s, t, {"class_labels": labels}), expected, rtol=1e-4, atol=1e-4
        )
