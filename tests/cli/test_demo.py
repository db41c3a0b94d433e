"""`flowmaps demo` with seconds of training: what it writes, and what it does the second time."""

import json
from dataclasses import replace

import pytest


@pytest.fixture(scope="module", autouse=True)
def tiny_settings():
    """The demo's own settings, with networks that are quick to sample."""
    from flowmaps.cli.demo_settings import DEMOS

    def smaller(config, **changes):
        run = config.run.model_copy(update={"compile": "no", "precision": "fp32"})
        return config.model_copy(update={"net": "mlp-tiny", "run": run} | changes)

    with pytest.MonkeyPatch.context() as patch:
        for name, changes in (("digits", {}), ("prompts", {"net": "dit-tiny", "patch": 16})):
            demo = DEMOS[name]
            small = {
                key: smaller(getattr(demo, key), **changes) for key in ("baseline", "flow_map")
            }
            steps = {"baseline_steps": (1, 8)} if name == "prompts" else {}
            patch.setitem(DEMOS, name, replace(demo, **small, **steps))
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory, tiny_settings):
    from flowmaps.cli.main import main

    out = tmp_path_factory.mktemp("demo") / "demo"
    assert main(["demo", "--out", str(out), "--seconds", "3", "-n", "200"]) == 0
    return out


def test_report_json_is_what_the_issue_says(demo) -> None:
    report = json.loads((demo / "report.json").read_text())
    assert {"data", "rows", "train_seconds", "machine", "versions"} <= set(report)
    keys = {"model", "recipe", "sampler", "nfe", "frechet", "accuracy", "seconds"}
    assert all(set(row) == keys for row in report["rows"])
    ways = [(row["model"], row["nfe"]) for row in report["rows"]]
    jumps = [("flow_map", k) for k in (1, 2, 4, 8)]
    assert ways == jumps + [("flow_matching", 2 * k) for k in (1, 2, 4, 8, 16, 32, 64)]
    assert all(0 <= row["accuracy"] <= 1 < 1000 * row["seconds"] * 1000 for row in report["rows"])
    assert 6 <= report["train_seconds"]["total"] < 60
    assert {"python", "torch", "flowmaps"} <= set(report["versions"])


def test_the_page_holds_everything(demo) -> None:
    page = (demo / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8
    assert "http://" not in page
    assert "https://" not in page
    for heading in ("What one sees", "Tangents against jumps", "One trajectory", "Measured"):
        assert f"<h2>{heading}</h2>" in page
    for name in ("tangents_and_jumps", "trajectory", "samples", "compare", "audit"):
        assert (demo / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_demo_uses_what_is_there(demo, call) -> None:
    before = (demo / "flow_map" / "metrics.jsonl").read_bytes()
    status, said, err = call("demo", "--out", demo, "--seconds", 3, "-n", 20)
    assert status == 0
    assert err.count("is trained already") == 2
    assert (demo / "flow_map" / "metrics.jsonl").read_bytes() == before
    assert said.splitlines()[-1] == str(demo / "report.html")
    assert said.startswith("model")


def test_foreign_folders_are_left_alone(call, tmp_path) -> None:
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "thesis.tex").write_text("years of work")
    status, _, err = call("demo", "--out", tmp_path, "--seconds", 3)
    assert status == 2
    assert "is not a run of the demo" in err
    assert (tmp_path / "baseline" / "thesis.tex").exists()


def test_the_demo_of_prompts_measures_what_was_asked_for(call, tmp_path) -> None:
    from flowmaps.cli.demo import configurations, measure, text_table
    from flowmaps.cli.demo_page import lead, samples_picture
    from flowmaps.cli.demo_settings import DEMOS
    from flowmaps.train import setup

    demo = DEMOS["prompts"]
    for name, config in configurations(demo, tmp_path, None).items():
        run = config.run.model_copy(update={"steps": 2, "seconds": None, "batch": 16})
        setup.train(config.model_copy(update={"run": run}), tmp_path / name)
    assert config.teacher == str(tmp_path / "baseline")
    report, measured = measure(demo, tmp_path, 12)
    keys = {"model", "recipe", "sampler", "nfe", "adherence", "adherence_held_out", "seconds"}
    assert all(set(row) == keys for row in (*report["rows"], report["own_walk"]))
    # a guided walk calls the network twice for each evaluation
    assert [row["nfe"] for row in report["rows"]] == [1, 2, 4, 4, 32]
    assert report["guidance"] == 2
    assert report["own_walk"]["sampler"] == "8 heun steps"
    assert report["one_sample"]["jump"] < report["one_sample"]["walk"]
    assert "300" not in lead(report, demo)
    assert "adherence_held_out" in text_table(report["rows"], list(demo.scores))
    picture = samples_picture(measured)
    assert picture.height > 10 * 96
    assert "there is a demo of digits and of prompts" in call("demo", "promts")[2]


def test_the_demo_of_sound_plays_what_it_made(tmp_path) -> None:
    from flowmaps.cli.demo import configurations, measure
    from flowmaps.cli.demo_page import _sections, heard, samples_picture
    from flowmaps.cli.demo_settings import DEMOS
    from flowmaps.data.sets import tones
    from flowmaps.data.sounds import read_sound
    from flowmaps.report import Audit
    from flowmaps.train import setup

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tones, "CLIPS", 1)
        demo = replace(DEMOS["sound"], baseline_steps=(2,), flow_map_steps=(1,), shown=(0, 3))
        for name, config in configurations(demo, tmp_path, None).items():
            run = {"steps": 1, "seconds": None, "batch": 4, "compile": "no", "precision": "fp32"}
            update = {"run": config.run.model_copy(update=run)}
            setup.train(config.model_copy(update=update), tmp_path / name)
        report, measured = measure(demo, tmp_path, 12)
        keys = {"frechet", "instrument", "in_tune", "seconds", "nfe", "model", "recipe", "sampler"}
        assert all(set(row) == keys for row in report["rows"])
        section = heard(measured, tmp_path).html()
        names = "tangents_and_jumps time_and_space trajectory samples compare audit "
        names += "loss_baseline loss_flow_map"
        shown = dict.fromkeys(names.split(), b"")
        found = Audit((0.0, 1.0), {}, {}, None, False, ())
        sections = _sections(report, shown, found, measured, tmp_path)
        headings = [each.heading for each in sections]
        assert headings[:2] == ["What one sees", "What one hears"]
        assert config.teacher is None
        assert any("learns from the data alone" in each.html() for each in sections)
    assert section.count("data:audio/wav;base64,") == 3
    assert "soft string a3, soft string d4" in section
    row, rate = read_sound(tmp_path / "1_jump.wav")
    assert (rate, tuple(row.shape)) == (16000, (1, 2 * 16000 + 2400))
    assert samples_picture(measured).width > 600
