"""Agreement with the authors' own code: loss and gradient on the same weights, noise and times, in float64.

`tests/goldens/NAME.safetensors` holds weights, points, and what a peer's loss function made of them; `peers.json` says whose
code, at which commit, with which settings, and how its reduction relates to ours: loss = factor x ours + offset (and, where a
loss is detached from its gradient, their gradient = gradient x factor x ours). The scripts that wrote them are in
`tools/goldens`. A recipe is `exact` if, and only if, it has a golden; entries with "exact": false are of its rule alone.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flowmaps import recipes
from flowmaps.core.flow_map import NetFlowMap
from flowmaps.learn.guidance import Guidance
from flowmaps.learn.objective import Objective
from flowmaps.learn.rules import Points
from flowmaps.learn.times import Fixed, Times

GOLDENS = Path(__file__).parents[1] / "goldens"
PEERS = json.loads((GOLDENS / "peers.json").read_text())


class Net(nn.Module):
    """Two hidden layers of SiLU on (x, s, t), with the stored weights."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.f = nn.ParameterDict({key: nn.Parameter(value) for key, value in values.items()})

    def forward(self, x: Tensor, s: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        h = torch.cat([x, s[:, None], t[:, None]], 1)
        label = self.f["E"][cond["label"]] if "E" in self.f else 0.0
        h = nn.functional.silu(h @ self.f["W0"] + self.f["b0"] + label)
        h = nn.functional.silu(h @ self.f["W1"] + self.f["b1"])
        return h @ self.f["W2"] + self.f["b2"]


def part(stored: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}


def bind(name: str, change=lambda recipe: recipe):
    """The recipe of a golden, its objective on the stored weights, and the stored points."""
    facts, stored = PEERS[name], load_file(GOLDENS / f"{name}.safetensors")
    recipe = recipes.get(facts["recipe"], **facts["settings"])
    if "guidance" in facts:
        classes, scale = facts["guidance"]["classes"], Fixed(facts["guidance"]["scale"])
        recipe = replace(recipe, guidance=Guidance({"label": classes}, scale))
    if "terms" in facts:  # a part of their loss: its mean, as if it had all rows
        chosen = [replace(x, share=1.0) for x in recipe.terms if x.label in facts["terms"]]
        recipe = replace(recipe, terms=tuple(chosen))
    recipe = change(recipe)

    def flow_map(role: str) -> NetFlowMap | None:
        values = part(stored, f"{role}.")
        local = role in facts.get("local", ()) or (role == "student" and recipe.local)
        net = Net(values) if values else None
        return net and NetFlowMap(net, recipe.interpolant, recipe.parametrization, local=local)

    objective = Objective(recipe, flow_map("student"), flow_map("teacher"), flow_map("ema"))
    if objective.logvar is not None:
        objective.logvar.double().load_state_dict(part(stored, "logvar."))
    progress = torch.tensor(facts.get("progress", 0.0), dtype=torch.float64)
    drawn = []
    for term in recipe.terms:
        rows = part(stored, f"{term.label}.")
        x, v = recipe.interpolant.sample(rows["x_0"], rows["eps"], rows["s"])
        times = Times(rows["s"], rows["w"], rows["t"])
        drawn.append(Points(x, v, times, part(rows, "cond."), progress, rows.get("scale")))
    return objective, tuple(drawn), stored


def compare(name: str, change=lambda recipe: recipe) -> tuple[float, float]:
    """Relative errors of loss and gradient."""
    objective, drawn, stored = bind(name, change)
    facts = PEERS[name]
    loss = facts.get("factor", 1.0) * objective(drawn).total + facts.get("offset", 0.0)
    weights = dict(objective.student.net.f.items())
    if objective.logvar is not None:
        weights |= {f"logvar.{key}": p for key, p in objective.logvar.named_parameters()}
    found = [g * facts.get("gradient", 1.0) for g in torch.autograd.grad(loss, [*weights.values()])]
    theirs = [stored[f"grad.{key}"] for key in weights]
    miss = torch.cat([(a - b).flatten() for a, b in zip(found, theirs, strict=True)]).norm()
    size = torch.cat([g.flatten() for g in theirs]).norm()
    off = abs(loss.item() / stored["loss"].item() - 1) if "loss" in stored else 0.0
    return off, float(miss / size)


@pytest.mark.parametrize("name", PEERS)
def test_loss_and_gradient_are_the_authors(name) -> None:
    loss, gradient = compare(name)
    assert loss < 1e-9  # measured: below 1e-12; the bar is 1e-6
    assert gradient < 1e-9


class Backwards:
    """Companions who answer with the sign flipped (the conditional velocity is flipped among the points)."""

    def __init__(self, models) -> None:
        self.models = models

    def velocity(self, source, *args):
        v = self.models.velocity(source, *args)
        return v if source == "conditional" else -v

    def jump(self, *args, **kwargs):
        return -self.models.jump(*args, **kwargs)


class Twisted:
    """A rule with one fault."""

    def __init__(self, rule, fault: str) -> None:
        self.rule, self.fault = rule, fault
        for field in ("velocity", "tangent", "jump", "through", "below"):
            if hasattr(rule, field):
                setattr(self, field, getattr(rule, field))

    def __call__(self, f, b, models):
        s, w, t = b.times
        if self.fault == "swapped":
            b = replace(b, times=Times(t, w, s))
        if self.fault == "backwards":
            b, models = replace(b, v=-b.v), Backwards(models)
        prediction, target = self.rule(f, b, models)
        if self.fault == "sign":  # a target of zero has none: half of the prediction, then
            return (prediction, -target) if target.any() else (prediction / 2, target)
        return prediction, target


@pytest.mark.parametrize("fault", ["sign", "swapped", "backwards"])
@pytest.mark.parametrize("name", PEERS)
def test_a_golden_sees_a_fault_in_every_term(name, fault) -> None:
    for i, term in enumerate(bind(name)[0].recipe.terms):
        if fault == "swapped" and term.label in ("diagonal", "denoise"):
            continue  # s = t: nothing to swap

        def plant(recipe, i=i):
            terms = list(recipe.terms)
            terms[i] = replace(terms[i], rule=Twisted(terms[i].rule, fault), name=terms[i].label)
            return replace(recipe, terms=tuple(terms))

        off = compare(name, plant)
        assert not all(error < 1e-3 for error in off), term.label  # a fault may give NaN


def test_exact_recipes_are_those_with_a_golden() -> None:
    exact = {name for name, make in recipes.all_recipes().items() if make().status == "exact"}
    assert exact == {facts["recipe"] for facts in PEERS.values() if facts.get("exact", True)}
