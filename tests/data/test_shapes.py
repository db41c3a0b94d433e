"""Scenes: reproducible, read back from pixels without a miss, told truly, and never of a pair that is held out."""

import re

import pytest
import torch

from flowmaps.data import Conditioned, Judging, load
from flowmaps.data.reading import fulfilled, read
from flowmaps.data.scenes import COLOURS, HELD_OUT, SHAPES, Thing
from flowmaps.errors import DataError

ROWS = torch.arange(150) * 7 + 3
NOUNS = {"circle": 0, "disc": 0, "square": 1, "box": 1, "triangle": 2, "cross": 3, "plus": 3}


@pytest.fixture(scope="module")
def train():
    return load("shapes")


def test_rows_are_functions_of_seed_split_and_number(train) -> None:
    x, labels = train.batch(ROWS[:9])
    assert (x.shape, x.dtype, labels) == ((9, 3, 32, 32), torch.float32, None)
    assert torch.equal(x[5], load("shapes").batch(ROWS[5:6])[0][0])
    for other in (load("shapes", seed=1), load("shapes", split="test")):
        assert not torch.equal(x, other.batch(ROWS[:9])[0])
    assert isinstance(train, Conditioned)
    assert isinstance(train, Judging)
    far = train.batch(torch.tensor([10**12]))[0]
    assert len(read(far)[0]) in (1, 2, 3)


@pytest.mark.parametrize("name", ["shapes", "shapes:test", "shapes:held-out"])
def test_what_was_drawn_is_read(name) -> None:
    data = load(name)
    x, _ = data.batch(ROWS)
    things = [set(scene.things) for scene in data.scenes(ROWS)]
    assert [set(found) for found in read(x)] == things
    noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    right = sum(set(a) == b for a, b in zip(read(noisy), things, strict=True))
    assert right >= 0.98 * len(things)
    assert set(data.scores(x, ROWS).values()) == {1.0}


def test_held_out_pairs_are_in_every_scene_of_their_split_and_in_no_other() -> None:
    def pairs(name: str) -> list[set[tuple[int, int]]]:
        return [{thing[:2] for thing in scene.things} for scene in load(name).scenes(ROWS)]

    assert all(found & set(HELD_OUT) for found in pairs("shapes:held-out"))
    for name in ("shapes", "shapes:test"):
        assert not any(found & set(HELD_OUT) for found in pairs(name))
    seen = set().union(*pairs("shapes"))
    assert len(seen) == len(SHAPES) * len(COLOURS) - len(HELD_OUT)


def test_captions_tell_what_is_asked_and_nothing_else(train) -> None:
    """The words are read again by rules of their own."""
    sizes = {w: 0 for w in ("small", "tiny", "little")} | {w: 1 for w in ("big", "large")}
    swapped = ("below", "under", "right of")
    for scene in train.scenes(ROWS):
        phrases = re.findall(
            rf"a ((?:\w+ )*?)({'|'.join(NOUNS)})\b([^a]*(?:at [^a]*)?)", scene.caption
        )
        asked = list(scene.asked)
        if (
            len(asked) == 2
            and any(word in scene.caption for word in swapped)
            and "the " not in (scene.caption.replace("to the ", ""))
        ):
            asked.reverse()
        assert len(phrases) == len(asked), scene.caption
        for (adjectives, noun, _), wish in zip(phrases, asked, strict=True):
            words = adjectives.split()
            assert NOUNS[noun] == wish.shape
            assert next((sizes[w] for w in words if w in sizes), None) == wish.size
            assert (
                next((list(COLOURS).index(w) for w in words if w in COLOURS), None) == wish.colour
            )
        for thing, wish in zip(scene.things, scene.asked, strict=True):
            assert all(w in (t, None) for t, w in zip(thing, wish, strict=True))
    wordings = {
        re.sub(r"\b(" + "|".join(COLOURS) + r")\b", "", s.caption) for s in train.scenes(ROWS)
    }
    assert len(wordings) > 90


def test_places_in_words_are_places_in_pictures(train) -> None:
    """What stands first in "A above B" is drawn higher, in "B below A" lower."""
    words = {"above": (3, 0), "over": (3, 0), "below": (3, 1), "under": (3, 1)}
    words |= {"left of": (4, 0), "right of": (4, 1)}
    seen = set()
    for scene in train.scenes(torch.arange(400)):
        hit = next((word for word in words if f"{word} a " in scene.caption), None)
        if hit is None:
            continue
        seen.add(hit)
        axis, turned = words[hit]
        assert scene.things[0][axis] < scene.things[1][axis]
        assert scene.things[turned].shape == NOUNS[re.findall("|".join(NOUNS), scene.caption)[0]]
    assert seen == set(words)


A = Thing(0, 1, 0, 0, 2)
B = Thing(2, 3, 1, 2, 2)


@pytest.mark.parametrize(
    ("found", "asked", "expected"),
    [
        ((B, A), (A, B), {"adherence": 1, "size": 1, "number": 1, "all": 1}),
        ((B, A._replace(colour=5)), (A, B), {"adherence": 5 / 6, "colour": 0.5, "all": 0}),
        ((B, A._replace(colour=5)), (A._replace(colour=None), B), {"adherence": 1, "all": 1}),
        ((A,), (A, B), {"adherence": 0.5, "shape": 0.5, "number": 0, "all": 0}),
        ((A, B, B), (A, B), {"adherence": 1, "number": 0, "all": 0}),
        ((), (A,), {"adherence": 0, "place": 0, "number": 0}),
        ((A._replace(row=1),), (A,), {"place": 0, "adherence": 2 / 3}),
        ((A._replace(row=1),), (A._replace(row=None),), {"place": 1, "all": 1}),
        ((A._replace(size=1),), (A,), {"size": 0, "adherence": 1, "all": 0}),
    ],
)
def test_wishes_are_counted(found, asked, expected) -> None:
    scores = fulfilled([found], [asked])
    assert {name: scores[name] for name in expected} == pytest.approx(expected)


def test_pictures_of_other_captions_fulfil_few_wishes(train) -> None:
    x, _ = train.batch(ROWS)
    assert train.scores(x.flip(0), ROWS)["adherence"] < 0.4
    assert train.scores(torch.full_like(x, -0.85), ROWS)["adherence"] == 0
    noise = torch.randn(x[:4].shape, generator=torch.Generator().manual_seed(0))
    assert train.scores(noise, ROWS[:4])["all"] == 0


def test_unknown_splits_and_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="expected split train, test, held-out"):
        load("shapes:tset")
    with pytest.raises(DataError, match="size 32"):
        load("shapes", size=64)
