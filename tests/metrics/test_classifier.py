import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flowmaps.data import TensorData, load
from flowmaps.errors import CheckpointError, DataError, ShapeError, TrainingError
from flowmaps.metrics import (
    Classifier,
    accuracy,
    fit_classifier,
    frechet,
    load_classifier,
    save_classifier,
)

STORED = Path(__file__).parents[2] / "benchmarks" / "fashion_classifier.safetensors"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def part(start: int) -> TensorData:
    digits = load("digits")
    x, labels = digits.batch(torch.arange(start, 1797, 2))
    return TensorData("digits", x, labels, digits.classes)


def test_digits_are_learned_and_held_out_ones_named():
    losses: list[float] = []
    net = fit_classifier(
        part(0), steps=120, batch=64, seed=1, report=lambda step, loss: losses.append(loss)
    )
    assert not net.training
    assert len(losses) == 120
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])
    assert accuracy(net, part(1), batch=300) > 0.95


def test_equal_seeds_give_equal_weights_and_no_global_draw():
    before = torch.get_rng_state()
    nets = [fit_classifier(part(0), steps=3, batch=16, seed=seed) for seed in (2, 2, 3)]
    assert torch.equal(before, torch.get_rng_state())
    weights = [net.logits.weight for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])
    start = fit_classifier(part(0), steps=0, seed=2).logits.weight
    assert torch.equal(start, Classifier(1, 10, seed=2).logits.weight)
    assert not torch.allclose(start, Classifier(1, 10).logits.weight)


def test_features_are_the_layer_before_the_logits():
    net = Classifier(3, 5, seed=4).eval()
    x = torch.rand(6, 3, 9, 13, generator=torch.Generator().manual_seed(5)) * 2 - 1
    features = net.features(x)
    assert features.shape == (6, 64)
    assert features.min() >= 0
    torch.testing.assert_close(net(x), net.logits(features))
    assert frechet(x, -x, net.features) > 0
    assert sum(p.numel() for p in net.parameters()) < 120_000


def test_images_that_do_not_fit_are_refused():
    net = Classifier(1, 5)
    for shape in ((2, 3, 9, 9), (2, 1, 9, 7), (1, 9, 9)):
        with pytest.raises(ShapeError, match=r"expected images \(B, 1, H, W\) with H, W >= 8; got"):
            net.features(torch.zeros(shape))


def test_data_that_cannot_be_learned_are_refused():
    data = part(0)
    with pytest.raises(DataError, match="expected data with classes; got none"):
        fit_classifier(replace(data, labels=None, classes=()), steps=1)
    with pytest.raises(TrainingError, match="expected a finite loss; got nan at step 0"):
        fit_classifier(replace(data, x=data.x / 0), steps=1)


def test_what_is_stored_comes_back(tmp_path: Path):
    net = fit_classifier(part(0), steps=2, batch=8, seed=6)
    save_classifier(tmp_path / "net.safetensors", net, data="digits")
    again, (x, _) = load_classifier(tmp_path / "net.safetensors"), part(1).batch(torch.arange(7))
    assert torch.equal(net(x), again(x))


def test_files_that_are_no_classifier_are_refused(tmp_path: Path):
    file = tmp_path / "net.safetensors"
    with pytest.raises(CheckpointError, match=r"net\.safetensors: expected a classifier"):
        load_classifier(file)
    file.write_bytes(b"no safetensors at all")
    with pytest.raises(CheckpointError, match="expected a classifier in safetensors; got"):
        load_classifier(file)
    save_file({"x": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match=r"expected format flowmaps.classifier.1; got None"):
        load_classifier(file)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs dataset-fashion-mnist")
def test_the_stored_classifier_is_as_good_as_its_card_says():
    assert STORED.stat().st_size <= 500_000
    card = json.loads(STORED.with_suffix(".json").read_text())
    assert card["test_accuracy"] >= 0.9
    x, labels = load("fashion-mnist", split="test").batch(torch.arange(1000))
    found = accuracy(load_classifier(STORED), TensorData("head", x, labels, tuple("0123456789")))
    # 1000 images: a standard error of 0.009; 4 of them
    assert found == pytest.approx(card["test_accuracy"], abs=0.036)
