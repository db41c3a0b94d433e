"""A second time for every class: exactly the teacher at the start, differentiable, saved, replayed by checkpointing."""

import copy
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra: pip install 'flowmaps[diffusers]'")

import diffusers
from torch import nn

from flowmaps.adapters.carried import Jump
from flowmaps.adapters.diffusers import Guided, add_lora, denoiser, flow_map, velocity
from flowmaps.adapters.two_time import around
from flowmaps.core.autodiff import along_source
from flowmaps.core.flow_map import NetFlowMap, rematch
from flowmaps.core.interpolant import linear
from flowmaps.errors import AdapterError
from flowmaps.testing.fitness import fitness
from flowmaps.testing.zoo import ZOO

WRAPPED = [name for name in ZOO if name != "AnyFlow"]
S, T = torch.tensor([0.7, 0.301]), torch.tensor([0.2, 0.9])


def teacher(name: str, dtype: torch.dtype = torch.float32, **options) -> NetFlowMap:
    specimen = ZOO[name]
    return velocity(
        specimen.build(dtype),
        scheduler=specimen.scheduler(),
        constant=specimen.constant(),
        **options,
    )


def awake(student: NetFlowMap) -> NetFlowMap:
    """As after some training: the embedding of the jump is no longer zero."""
    for module in student.modules():
        if isinstance(module, Jump):
            nn.init.normal_(module.last.weight, std=0.3)
    return student


@pytest.mark.parametrize("name", ZOO)
def test_it_starts_as_the_teacher(name: str, gen: torch.Generator) -> None:
    field = teacher(name)
    student = flow_map(field)
    x, cond = ZOO[name].inputs(2, gen)
    with torch.no_grad():
        assert torch.equal(student.velocity(x, S, **cond), field.velocity(x, S, **cond))
        far, near = (student.output(x, S, t, **cond) for t in (T, S))
    assert torch.equal(far, near) or name == "AnyFlow"  # a class of its own was a map before


@pytest.mark.parametrize("name", ["UNet2D", "DiT", "Stable Audio", "Flux"])
def test_once_trained_it_is_the_teacher_on_the_diagonal_only(
    name: str, gen: torch.Generator
) -> None:
    field = teacher(name)
    student = awake(flow_map(field))
    x, cond = ZOO[name].inputs(2, gen)
    with torch.no_grad():
        assert torch.equal(student.velocity(x, S, **cond), field.velocity(x, S, **cond))
        assert (
            student.output(x, S, T, **cond) - student.output(x, S, S, **cond)
        ).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["UNet2D", "SD3"])
def test_on_the_straight_path_too(name: str, gen: torch.Generator) -> None:
    """The recipes' usual path: teacher and student through the same change of path, and the same field as `rematch` gives."""
    own = teacher(name, torch.float64)
    model = denoiser(own).model
    field = velocity(model, scheduler=ZOO[name].scheduler(), path=linear())
    student = flow_map(field)
    x, cond = ZOO[name].inputs(2, gen, torch.float64)
    s = S.double()
    with torch.no_grad():
        assert student.interpolant == linear()
        assert torch.equal(student.velocity(x, s, **cond), field.velocity(x, s, **cond))
        torch.testing.assert_close(
            rematch(own, linear()).velocity(x, s, **cond),
            field.velocity(x, s, **cond),
            rtol=1e-12,
            atol=1e-12,
        )


@pytest.mark.parametrize("name", ZOO)
def test_derivatives(name: str, gen: torch.Generator) -> None:
    """Exact JVPs and the gradient through them, layer norms included (torch's own rule is wrong by 1 to 20 % here)."""
    student = awake(flow_map(teacher(name, torch.float64)))
    x, cond = ZOO[name].inputs(2, gen, torch.float64)
    found = fitness(student, x, cond, gen)
    assert found.jvp < 1e-6  # 1e-15, but for classes that cast to float32 inside
    assert found.finite < 0.1  # a step of a tenth of a timestep, across the corners of Sana's ReLU
    assert found.gradient < 1e-5


def test_the_gradient_through_a_derivative_by_finite_differences(gen: torch.Generator) -> None:
    """A witness that shares nothing with autograd: the derivative moves as its gradient says when a weight does."""
    student = awake(flow_map(teacher("DiT", torch.float64)))
    x, cond = ZOO["DiT"].inputs(2, gen, torch.float64)
    weights = dict(denoiser(student).model.named_parameters())
    weight = next(p for name, p in weights.items() if name.endswith("blocks.0.attn1.to_q.weight"))
    fn = lambda x, s, t: student.mean_velocity(x, s, t, **cond)
    slope = lambda through: (
        along_source(fn, x, S.double(), T.double(), x, through=through)[1].pow(2).sum()
    )
    (gradient,) = torch.autograd.grad(slope(True), weight)
    way, values = torch.randn(weight.shape, generator=gen, dtype=torch.float64), []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            weight.add_(way, alpha=step)
            values.append(slope(False))
    torch.testing.assert_close(
        (gradient * way).sum(), (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("name", ["UNet2D", "DiT"])
def test_checkpointed_blocks_are_replayed_with_their_own_jump(
    name: str, gen: torch.Generator
) -> None:
    """DiT embeds the times inside its blocks; two calls lie between a forward pass and its replay."""
    plain = awake(flow_map(teacher(name))).train()
    saving = copy.deepcopy(plain)
    denoiser(saving).model.enable_gradient_checkpointing()
    x, cond = ZOO[name].inputs(2, gen)
    gradients = []
    for student in (plain, saving):
        first, second = (student.output(x, S, t, **cond) for t in (T, S))
        (first.square().sum() + second.sum()).backward()
        gradients.append([p.grad for p in student.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 20
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert denoiser(plain).model._embedders()[0].gap is None


def test_checkpointing_rests_inside_a_forward_mode_derivative(gen: torch.Generator) -> None:
    student = awake(flow_map(teacher("DiT", torch.float64))).train()
    denoiser(student).model.enable_gradient_checkpointing()
    x, cond = ZOO["DiT"].inputs(2, gen, torch.float64)
    assert max(fitness(student, x, cond, gen)[::2]) < 1e-5
    assert denoiser(student).model.backbone.gradient_checkpointing


@pytest.mark.parametrize("name", WRAPPED)
def test_save_and_reload(name: str, gen: torch.Generator, tmp_path: Path) -> None:
    student = awake(flow_map(teacher(name)))
    denoiser(student).model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    assert json.loads((tmp_path / "config.json").read_text())["backbone_class"] == ZOO[name].kind
    again = flow_map(tmp_path, scheduler=ZOO[name].scheduler(), constant=ZOO[name].constant())
    x, cond = ZOO[name].inputs(2, gen)
    with torch.no_grad():
        assert torch.equal(again(x, S, T, **cond), student(x, S, T, **cond))


def test_lora_and_the_second_time_in_one_file(gen: torch.Generator, tmp_path: Path) -> None:
    specimen, field = ZOO["SD 1.5 UNet"], teacher("SD 1.5 UNet")
    student = add_lora(flow_map(field), rank=2)
    trained = [name for name, p in student.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name or "jump" in name for name in trained)
    for p in student.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.1)
    denoiser(student).model.save_lora_adapter(tmp_path, weight_name="lora.safetensors")
    again = flow_map(field)
    denoiser(again).model.load_lora_adapter(tmp_path, weight_name="lora.safetensors", prefix=None)
    x, cond = specimen.inputs(2, gen)
    with torch.no_grad():
        assert torch.equal(again(x, S, T, **cond), student(x, S, T, **cond))
        assert not torch.equal(again(x, S, T, **cond), flow_map(field)(x, S, T, **cond))


def test_half_precision_weights_keep_the_times(gen: torch.Generator) -> None:
    """The jump is embedded from float32 times: bfloat16 would see none of these."""
    student = awake(flow_map(teacher("UNet2D"))).to(torch.bfloat16)
    x, _ = ZOO["UNet2D"].inputs(1, gen)
    rows = x.expand(8, *x.shape[1:])
    t = torch.linspace(0.5, 0.505, 8)
    gaps = next(m for m in student.modules() if isinstance(m, Jump))
    with torch.no_grad():
        assert student.output(rows, torch.full((8,), 0.7), t).dtype == torch.float32
        assert len(gaps.frequencies(0.7 - t).unique(dim=0)) == 8


def test_guided_teachers(gen: torch.Generator) -> None:
    field, weak = teacher("DiT"), teacher("DiT")
    x, cond = ZOO["DiT"].inputs(2, gen)
    null = {"class_labels": 10}
    with torch.no_grad():
        with_class = field.velocity(x, S, **cond)
        without = field.velocity(x, S, class_labels=torch.tensor([10, 10]))
        guided = Guided(field, 3.0, null=null, high=0.5)
        expected = torch.stack([with_class[0], without[1] + 3 * (with_class[1] - without[1])])
        torch.testing.assert_close(guided.velocity(x, S, **cond), expected)
        auto = Guided(field, 2.0, weak=weak).velocity(x, S, **cond)
        torch.testing.assert_close(auto, 2 * with_class - weak.velocity(x, S, **cond))
    with pytest.raises(AdapterError, match=r"null= .* or weak="):
        Guided(field, 2.0)


def test_classes_with_a_second_time_of_their_own_that_is_switched_off(gen: torch.Generator) -> None:
    model = diffusers.Flux3Transformer2DModel(
        in_channels=4, cond_in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, timestep_channels=16, axes_dims_rope=(2, 2, 2, 2),
    ).eval()  # fmt: skip
    constant = {"img_ids": torch.zeros(16, 4), "txt_ids": torch.zeros(3, 4)}
    field = velocity(
        model, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), constant=constant
    )
    student = flow_map(field)
    assert denoiser(student).second == "target_timestep"
    x, text = torch.randn(2, 16, 4, generator=gen), torch.randn(2, 3, 8, generator=gen)
    with torch.no_grad():
        out = student.output(x, S, T, encoder_hidden_states=text)
        assert torch.equal(out, field.output(x, S, T, encoder_hidden_states=text))


def test_what_has_no_embedding_of_time(gen: torch.Generator) -> None:
    model = diffusers.UNet1DModel(block_out_channels=(8, 8, 16), extra_in_channels=16)
    with pytest.raises(AdapterError, match=r"UNet1DModel has no .* embedders="):
        around(model, 1000.0)
