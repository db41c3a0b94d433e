"""Texts become tensors: any language, any length; folders and fonts with captions; encoders of transformers."""

import json
import os
import sys

import pytest
import torch
from PIL import Image

from flowmaps.data import TensorData, load, nulls
from flowmaps.data.captions import CaptionedImages, in_turn, read_by, texts
from flowmaps.data.measured import Measured
from flowmaps.data.sets import emoji as emoji_set
from flowmaps.data.text import Pretrained, Words, encoder, words_for
from flowmaps.data.told import Prompted
from flowmaps.errors import DataError, MissingExtraError


def decoded(row: torch.Tensor) -> list[str]:
    return [bytes(word[word != 0].tolist()).decode(errors="replace") for word in row if word.any()]


def test_words_are_their_bytes() -> None:
    read = Words(length=7, letters=8)(["A small, RED circle!", "", "красный 😀 红色"])["text"]
    assert (read.shape, read.dtype) == ((3, 7, 8), torch.uint8)
    assert decoded(read[0]) == ["a", "small", ",", "red", "circle", "!"]
    assert not read[1].any()
    whole = b"".join(bytes(word[word != 0].tolist()) for word in read[2]).decode()
    assert whole == "красный😀红色"


@pytest.mark.parametrize(
    "text", ["x" * 10_000, "a b " * 2500, "\ud83d lone", "\0\n\t ", "🏳️‍🌈👩🏽‍🚀", "हिन्दी"]
)
def test_odd_texts_are_read(text) -> None:
    words = Words(length=5, letters=4)
    assert words([text])["text"].shape == (1, 5, 4)
    assert words.count("x" * 10_000) == 2500
    assert torch.equal(words(["Red"])["text"], words(["red"])["text"])
    assert not torch.equal(words(["red box"])["text"], words(["box red"])["text"])


def test_encoders_are_rebuilt_from_their_settings() -> None:
    words = Words(9, 5)
    assert encoder(json.loads(json.dumps(words.settings))) == words
    assert encoder(Pretrained("somewhere", 7).settings) == Pretrained("somewhere", 7)
    with pytest.raises(DataError, match="upgrade flowmaps"):
        encoder({"kind": "smell"})
    assert words_for(["one two", "one, two, three"]).length == 5
    assert words_for(["x " * 200]).length == 64


@pytest.fixture
def folder(tmp_path):
    rows = []
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (12, 10), colour).save(tmp_path / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"a {colour} page"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return tmp_path


def test_a_folder_with_captions(folder) -> None:
    data = load(folder)
    assert isinstance(data, CaptionedImages)
    assert (len(data), data.shape, data.classes) == (3, (3, 10, 10), ())
    x, labels = data.batch(torch.tensor([2, 0]))
    assert labels is None
    assert x[0, :, 5, 5].tolist() == [-1, -1, 1]
    told = data.conditions(torch.tensor([2, 0]))["text"]
    assert [decoded(row) for row in told] == [["a", "blue", "page"], ["a", "red", "page"]]
    assert not nulls(data)["text"].any()
    remembered = json.loads(json.dumps(texts(data)))
    turns = in_turn(remembered, torch.arange(5))["text"]
    assert [decoded(row)[1] for row in turns] == ["red", "green", "blue", "red", "green"]
    assert load(folder, size=4).shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{}", "in line 1"),
        ("not json", "in line 1"),
        ('{"file_name": "x.png", "text": "y"}', "x.png"),
        ("", "got none"),
    ],
)
def test_broken_captions_are_named(tmp_path, line, said) -> None:
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(DataError, match=said):
        load(tmp_path)


def test_emoji_without_their_font_say_what_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(emoji_set, "FOLDERS", (str(tmp_path),))
    with pytest.raises(DataError, match="apt-get install fonts-noto-color-emoji"):
        load("emoji")


def test_emoji_have_names_and_colours() -> None:
    try:
        data = load("emoji")
    except DataError:
        pytest.skip("the font is not installed")
    test = load("emoji", split="test")
    assert not set(data.texts) & set(test.texts)
    assert data.encoder == test.encoder
    assert len(data) > 1000
    x, _ = data.batch(torch.tensor([data.texts.index("tomato")]))
    assert x.shape == (1, 3, 32, 32)
    assert x[0, :, 0, 0].tolist() == [1, 1, 1]
    red, green, _ = x[0].mean((1, 2))
    assert red > green + 0.2


def test_emoji_tell_their_own_picture_from_others() -> None:
    """Noise up to what separates two is forgiven; another's picture is not; the distance is a root of mean squares."""
    try:
        data = load("emoji")
    except DataError:
        pytest.skip("the font is not installed")
    rows = torch.tensor([3, 17, 400, 901])
    x, _ = data.batch(rows)
    noisy = data.scores(
        x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), rows
    )
    assert noisy["found"] == 1
    assert noisy["distance"] == pytest.approx(0.1, rel=0.02)
    assert data.scores(x[[0, 1, 2, 1]], rows)["found"] == 0.75


def test_a_text_model_needs_captions_and_its_package(folder, monkeypatch) -> None:
    assert read_by(load("toy:moons"), None).name == "toy:moons"
    with pytest.raises(DataError, match="expected captions"):
        read_by(load("toy:moons"), "some/model")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        read_by(load(folder), "some/model").null  # noqa: B018  # a property that reads the empty text


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A text model of two layers, as MiniLM is one of six."""
    transformers = pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "blue", "page"]
    (place / "vocab.txt").write_text("\n".join(words))
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        transformers.BertModel(config).save_pretrained(place)
    transformers.BertTokenizer(str(place / "vocab.txt")).save_pretrained(place)
    return str(place)


def test_a_pretrained_encoder(bert) -> None:
    read = Pretrained(bert, length=6)
    found = read(["a red page", "", "a blue page a green page"])
    assert (found["text"].shape, found["text"].dtype) == ((3, 6, 12), torch.float32)
    assert found["mask"].sum(1).tolist() == [5, 0, 6]
    assert not found["text"][~found["mask"]].any()
    assert read.count("a blue page a green page") == 8
    alone = read(["a red page"])
    torch.testing.assert_close(alone["text"][0], found["text"][0])


def test_embeddings_are_computed_once(bert, folder, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = read_by(load(folder), bert)
    rows = torch.tensor([2, 0])
    first = data.conditions(rows)
    assert [p.suffix for p in (tmp_path / "cache" / "flowmaps").iterdir()] == [".safetensors"]
    torch.testing.assert_close(first["text"][1], data.encoder(["a red page"])["text"][0])
    from flowmaps.data import text

    text.kept.cache_clear()
    monkeypatch.setattr(text, "_pretrained", lambda name: pytest.fail("it was read again"))
    assert torch.equal(read_by(load(folder), bert).conditions(rows)["mask"], first["mask"])


@pytest.mark.skipif(os.environ.get("HF_HUB_OFFLINE") == "0", reason="the hub may be asked")
def test_a_missing_model_is_one_sentence(monkeypatch, tmp_path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(DataError, match="expected a text model of transformers"):
        Pretrained(str(tmp_path / "nothing"))(["a"])


def test_what_a_checkpoint_remembers_of_texts_within_other_data() -> None:
    words = Words(length=4, letters=6)
    rows = TensorData("two", torch.zeros(2, 3))
    prompted = Prompted(rows, ("a dot", "a line"), words)
    found = texts(prompted)
    assert found["examples"] == ["a dot", "a line"]
    assert found["text"] == words.settings
    assert texts(Measured(prompted, 0.1)) == found
    assert texts(Measured(rows, 0.1)) == {}
