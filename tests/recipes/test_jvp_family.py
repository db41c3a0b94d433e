"""What the exam does not see of the JVP family: variants, and biases that are published and measured."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from flowmaps import recipes
from flowmaps.learn.weights import Perceptual
from flowmaps.testing import contract, worlds

VARIANTS = {
    "sCD": lambda: recipes.get("scm", velocity="teacher", warmup=0.0),
    "sCT": lambda: recipes.get("scm", warmup=0.0, sigma_data=1.0),
    "rcm-semi": lambda: recipes.get("rcm", semi=1e-4, warmup=0.0),
    "tvm-long": lambda: recipes.get("tvm", gap_mean=0.6, mean=0.3),
    "split-from-data": lambda: recipes.get("split_mean_flow", anchor="conditional"),
    "dmf-wide": lambda: recipes.get("decoupled_mean_flow", cauchy=1.0),
    "tim-plain": lambda: recipes.get("transition_models", step=2e-3, ends=0.3, cosine=False),
    "ayf-emd": lambda: recipes.get("ayf_emd", r_max=1.0, warmup=0.0),
    "ayf-lmd": lambda: recipes.get("ayf_lmd", r_max=1.0, warmup=0.0),
}


def gradient(recipe, batches: int = 40) -> tuple[float, float]:
    """Norm of the mean gradient at the exact map, and its standard error."""
    return contract._gradient(recipe, torch.Generator().manual_seed(3), batches, 256)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_stationary_at_the_exact_map(name) -> None:
    mean, error = gradient(VARIANTS[name]())
    assert mean < contract.STANDARD_ERRORS * error


@pytest.mark.parametrize("name", ["ayf_emd", "ayf_lmd"])
def test_the_regulariser_of_align_your_flow_is_a_bias_of_order_one(name) -> None:
    """r_max < 1 pulls to the velocity; before the norm of the tangent the gradient is proportional to 1 - r_max."""
    norms = []
    for r_max in (0.9, 0.95, 0.975):
        recipe = recipes.get(name, r_max=r_max, warmup=0.0)
        plain = replace(recipe, terms=(replace(recipe.terms[0], tangent=None),))
        norms.append(gradient(plain, 5)[0])
    assert norms[-1] > 1e-3
    for coarse, fine in pairwise(norms):
        assert coarse / fine == pytest.approx(2, rel=1e-4)
    # as it is published: 40 standard errors from zero once the warm-up is over
    mean, error = gradient(recipes.get(name, warmup=0.0))
    assert mean > 2 * contract.STANDARD_ERRORS * error
    halved = contract.finer(recipes.get(name, r_max=0.9, warmup=0.0), 2)
    assert halved.terms[0].rule.warmup.stop == pytest.approx(0.95)


def test_warm_up_is_a_bias_that_ends() -> None:
    """sCD while it warms up, and after: at the exact map the tangent is 0 only when r is 1."""
    recipe = recipes.get("scm", velocity="teacher", warmup=0.5)
    world = worlds.plane(recipe.interpolant)
    gen = torch.Generator().manual_seed(1)
    student = contract.NetFlowMap(
        contract._Nudged(world.flow_map, recipe.parametrization, 2),
        recipe.interpolant,
        recipe.parametrization,
    )
    objective = contract.Objective(recipe, student, teacher=world.flow_map)
    raw = {}
    for progress in (0.25, 0.5, 1.0):
        (b,) = recipe.draw(world.sample(64, gen), gen, None, progress)
        raw[progress] = float(objective((contract._wide(b),)).parts["trig"])
    assert raw[0.25] > 1e-2
    assert raw[0.5] < 1e-20
    assert raw[1.0] < 1e-20


def test_perceptual_option_of_pixel_mean_flow(gen) -> None:
    """The user's network sees predicted images and data, at sources below `until` only, and its gradient arrives."""
    seen = []

    def features(image):
        seen.append(image)
        return image.square()

    recipe = recipes.get("pixel_mean_flow", features=features, until=0.6)
    perceptual = recipe.terms[-1]
    assert perceptual.metric.of == Perceptual(features)
    world = worlds.rotated(dtype=torch.float64)
    x_0 = world.sample(64, gen)
    drawn = tuple(contract._wide(b) for b in recipe.draw(x_0, gen))
    student = contract.NetFlowMap(
        contract._Nudged(world.flow_map, recipe.parametrization, 2),
        recipe.interpolant,
        recipe.parametrization,
    )
    objective = contract.Objective(recipe, student)
    parts = objective(drawn).parts
    target, image = seen
    # the data of the term's own rows, which follow those of the others
    assert (
        float((target[:, None] - x_0[None]).abs().amax(-1).amin(1).max()) < 1e-6
    )  # drawn in float32
    b = drawn[-1]
    assert torch.allclose(
        image, b.x - b.times.s[:, None] * world.flow_map.mean_velocity(b.x, b.times.s, b.times.t)
    )
    assert image.requires_grad
    assert parts["towards"] > 0
    late = b.times.s > 0.6
    assert 0 < late.sum() < len(late)
    alone = replace(recipe, terms=(replace(perceptual, share=1.0),))
    only_late = contract.map_points(lambda v: v[late], b)
    assert float(contract.Objective(alone, student)((only_late,)).total.detach()) == 0
