"""`compare`, `evaluate`, `audit`, `recipes`, `cite` on a tiny run."""

import json
from dataclasses import replace

import pytest

from flowmaps import recipes
from flowmaps.bibliography import references
from flowmaps.cli.recipes import card
from flowmaps.recipes import all_recipes

SCORES = {"frechet", "accuracy", "kernel_distance", "precision", "recall"}


def test_evaluate(call, runs) -> None:
    status, said, err = call("evaluate", runs / "map", "-n", 60, "--json")
    assert (status, err) == (0, "")
    found = json.loads(said)
    assert set(found["scores"]) == SCORES
    assert (found["n"], found["nfe"], found["features"]) == (60, 1, "pixels")
    status, said, _ = call("evaluate", runs / "map", "-n", 60)
    assert status == 0
    assert f"{found['scores']['frechet']:.4g}" in said


def test_evaluate_in_features_of_a_classifier(call, runs, tmp_path) -> None:
    from flowmaps.metrics import Classifier, save_classifier

    file = tmp_path / "classifier.safetensors"
    save_classifier(file, Classifier(1, 10).eval())
    status, said, err = call("evaluate", runs / "map", "-n", 60, "--features", file, "--json")
    assert (status, err) == (0, "")
    assert set(json.loads(said)["scores"]) == SCORES


def test_compare(call, runs, tmp_path) -> None:
    out = tmp_path / "compare"
    status, said, _ = call(
        *("compare", runs / "map", "--baseline", runs / "teacher", "--steps", "1,2"),
        *("-n", 40, "--out", out, "--json"),
    )
    assert status == 0
    rows = json.loads(said)
    ways = [(row["model"], row["steps"], row["nfe"]) for row in rows]
    assert ways == [("flow_map", 1, 1), ("flow_map", 2, 2), ("solved", 1, 2), ("solved", 2, 4)]
    assert all({"frechet", "accuracy", "seconds"} <= set(row) for row in rows)
    assert json.loads((out / "compare.json").read_text()) == rows
    assert {p.name for p in out.iterdir()} == {"compare.json", "compare.png", "samples.png"}


def test_compare_prints_a_table_and_writes_into_the_run(call, runs) -> None:
    status, said, _ = call("compare", runs / "map", "--steps", "1", "-n", 20)
    assert status == 0
    assert said.splitlines()[0].split() == [
        *("model", "sampler", "steps", "NFE", "frechet", "accuracy", "seconds")
    ]
    assert (runs / "map" / "compare" / "compare.png").exists()


def test_audit(call, runs, tmp_path) -> None:
    out = tmp_path / "audit"
    arguments = ("--bins", 2, "--per-cell", 8, "--out", out)
    status, said, err = call("audit", runs / "map", *arguments, "--json")
    assert (status, err) == (0, "")
    found = json.loads(said)
    # the run had a teacher, which is the reference of the tangent condition
    names = {"tangent", "lagrangian", "eulerian", "compositional", "round_trip"}
    assert set(found["summary"]) == names
    assert json.loads((out / "audit.json").read_text()) == found
    assert (out / "audit.png").read_bytes().startswith(b"\x89PNG")
    status, said, _ = call("audit", runs / "map", *arguments)
    assert status == 0
    assert all(name in said for name in names)


def test_data_of_another_shape_are_refused(call, runs) -> None:
    status, _, err = call("evaluate", runs / "map", "--data", "toy:moons")
    assert status == 2
    assert "samples of shape (2,), the model of shape (1, 8, 8)" in err


def test_recipes_as_json(call) -> None:
    status, said, err = call("recipes", "--json")
    assert (status, err) == (0, "")
    cards = {card["name"]: card for card in json.loads(said)}
    assert set(cards) == set(all_recipes())
    keys = {"name", "year", "authors", "title", "paper", "rules", "velocity_from", "teacher", "jvp"}
    keys |= {"jumps", "status", "cite", "summary", "arguments"}
    keys |= {"where", "points", "cost", "calls", "deviations"}
    assert all(keys == set(c) for c in cards.values())
    assert all(c["cost"] >= 3 and c["deviations"] and c["calls"] for c in cards.values())
    assert cards["mean_flow"]["where"] == "Algorithm 1, eq. 22"
    assert cards["cmt"]["points"] == ["trajectory"]
    assert cards["boot"]["points"] == ["prior"]
    assert cards["lmd"]["calls"] == {"student JB": 1, "teacher FB": 1}
    assert cards["emd"]["teacher"]
    assert cards["emd"]["jvp"]
    assert not cards["flow_matching"]["jumps"]
    assert not cards["psd"]["jvp"]
    assert cards["psd"]["rules"] == ["diagonal", "compositional"]
    assert cards["mean_flow"]["arguments"]["diagonal"] == 0.75
    assert all(card["year"] and card["paper"] for card in cards.values())


def test_recipes_as_a_table(call) -> None:
    status, said, _ = call("recipes")
    assert status == 0
    assert all(name in said for name in all_recipes())
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize("name", all_recipes())
def test_every_recipe_is_cited(call, name) -> None:
    status, said, _ = call("cite", name)
    assert status == 0
    assert [f"@misc{{{key}," in said for key in all_recipes()[name]().cite] != []
    assert said.count("@") == len(all_recipes()[name]().cite)


def test_recipes_by_name(call) -> None:
    status, said, _ = call("recipes", "psd", "mean_flow", "--json")
    assert status == 0
    assert {card["name"] for card in json.loads(said)} == {"psd", "mean_flow"}
    status, _, wrong = call("recipes", "men_flow")
    assert status == 2
    assert "did you mean 'mean_flow'" in wrong


OWN = """@misc{doe2026own,
  title = {A Method of Their Own},
  author = {Doe, Jane and Roe, Richard},
  year = {2026},
  eprint = {2601.00000},
}"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (OWN, None),
        (
            "doe2026own",
            "recipe 'theirs': the bibliography of flowmaps has no 'doe2026own'; a recipe of",
        ),
        ("@misc{doe2026own, title = {A}}", "recipe 'theirs': a BibTeX entry in cite is"),
    ],
)
def test_recipes_of_other_packages_bring_their_bibtex(source, words, call, monkeypatch) -> None:
    def theirs():
        return replace(all_recipes()["mean_flow"](), cite=(source, "geng2025meanflow"))

    monkeypatch.setattr(recipes, "all_recipes", lambda: {"theirs": theirs})
    status, said, wrong = call("cite", "theirs")
    if words is None:
        assert (status, wrong) == (0, "")
        assert said.startswith(OWN + "\n\n@misc{geng2025meanflow,")
    else:
        assert status == 2
        assert words in wrong
    known = card(theirs)
    assert (known.authors, known.year) == (("Doe & Roe", 2026) if words is None else ("", None))


def test_cite_takes_a_key(call) -> None:
    assert call("cite", "karras2022edm")[1].startswith("@misc{karras2022edm,\n")


def test_the_bibliography_is_complete() -> None:
    for key, entry in references().items():
        assert entry.title, key
        assert entry.authors, key
        assert entry.paper, key
        assert 1950 < entry.year < 2100
        assert entry.text.count("{") == entry.text.count("}")
    assert references()["salimans2022progressive"].authors == "Salimans & Ho"
