"""Jumps written as graphs: equal to PyTorch at both times and any batch, and refused where they cannot be right."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flowmaps.adapters.graph import write_graph
from flowmaps.core.flow_map import NetFlowMap
from flowmaps.core.interpolant import edm, trig
from flowmaps.core.parametrization import Average, Boundary, EDMTwoTime
from flowmaps.errors import AdapterError, MissingExtraError
from flowmaps.nets.dit import DiT
from flowmaps.nets.mlp import MLP


def awake(net: nn.Module) -> nn.Module:
    """Networks start at zero."""
    for p in net.parameters():
        if not bool(p.any()):
            nn.init.normal_(p, std=0.1)
    return net


def maps() -> dict[str, tuple[NetFlowMap, tuple[int, ...], dict[str, tuple[int, ...]]]]:
    dit = awake(DiT((1, 8, 8), patch=4, width=24, depth=1, heads=2, classes=5))
    return {
        "mlp": (NetFlowMap(awake(MLP((2,), 16, 2)), trig(), EDMTwoTime(trig(), 0.5)), (2,), {}),
        "dit": (NetFlowMap(dit, edm(), Boundary(edm())), (1, 8, 8), {"label": ()}),
    }


def run_of(file: Path, x: Tensor, s: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
    if file.suffix == ".pt2":
        with file.open("rb") as stream:
            return torch.export.load(stream).module()(x, s, t, cond)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    fed = {"x": x, "s": s, "t": t, **cond}
    assert [each.name for each in session.get_inputs()] == list(fed)
    return torch.from_numpy(session.run(None, {k: v.numpy() for k, v in fed.items()})[0])


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_the_graph_is_the_map(name: str, suffix: str, tmp_path: Path, gen: torch.Generator) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'flowmaps[onnx]'")
        pytest.importorskip("onnxscript", reason="needs the extra: pip install 'flowmaps[onnx]'")
    flow_map, shape, cond = maps()[name]
    file = tmp_path / f"jump{suffix}"
    assert write_graph(flow_map, file, shape, cond) < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    for n in (1, 7):
        x, s = torch.randn(n, *shape, generator=gen), torch.rand(n, generator=gen)
        given = {key: torch.randint(5, (n,), generator=gen) for key in cond}
        for t in (torch.rand(n, generator=gen), s, torch.zeros(n)):
            with torch.no_grad():
                expected = flow_map(x, s, t, **given)
            torch.testing.assert_close(run_of(file, x, s, t, given), expected, rtol=1e-4, atol=1e-4)
    assert float((expected - x).abs().max()) > 0.05  # t = 0: no standing still


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow_map, shape, cond = maps()["mlp"]
    with pytest.raises(AdapterError, match=r"written as \.onnx or \.pt2; got jump\.tflite"):
        write_graph(flow_map, tmp_path / "jump.tflite", shape, cond)

    def stubborn(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return x if float(s.sum()) > 1 else -x

    with pytest.raises(AdapterError, match=r"cannot be traced by torch.export"):
        write_graph(NetFlowMap(stubborn, trig(), Average()), tmp_path / "jump.pt2", shape, {})

    class Fickle(nn.Module):
        calls = 0

        def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            Fickle.calls += 1
            return x * Fickle.calls

    with pytest.raises(AdapterError, match=r"differs from PyTorch by .* nothing was written"):
        write_graph(NetFlowMap(Fickle(), trig(), Average()), tmp_path / "jump.pt2", shape, {})
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("flowmaps.adapters.graph.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"onnx: pip install 'flowmaps\[onnx\]'"):
        write_graph(flow_map, tmp_path / "jump.onnx", shape, cond)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of flowmaps as `train` writes it."""
    from flowmaps.cli.main import main
    from flowmaps.train import load

    run = tmp_path / "run"
    words = "train flow_matching --data toy:checkerboard --net mlp-tiny --run.steps 2 --out"
    assert main([*words.split(), str(run)]) == 0
    capsys.readouterr()
    file = tmp_path / "jump.pt2"
    assert main(["export", str(run), "--out", str(file)]) == 0
    assert "x (B, 2), s (B), t (B)" in capsys.readouterr().out
    x, s, t = torch.randn(3, 2), torch.ones(3), torch.zeros(3)
    with torch.no_grad():
        expected = load(run).flow_map(x, s, t)
    with torch.no_grad():
        torch.testing.assert_close(run_of(file, x, s, t, {}), expected)
