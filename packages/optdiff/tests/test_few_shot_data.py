# SPDX-License-Identifier: Apache-2.0
"""The data of the few-shot example: glyphs, Omniglot folders and the tasks drawn from them."""

import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    episodes, glyphs, omniglot = map(importlib.import_module, ("episodes", "glyphs", "omniglot"))

FEW = {"train": {"Hebrew": ((0x05D0, 0x05EA),)}, "test": {"Lao": ((0x0E80, 0x0EFF),)}}


@pytest.fixture(scope="module")
def rendered():
    return glyphs.render(seed=0)


def all_alphabets(splits):
    return {name: images for alphabets in splits.values() for name, images in alphabets.items()}


def test_no_alphabet_and_no_code_point_is_in_two_splits():
    names = [name for alphabets in glyphs.SPLITS.values() for name in alphabets]
    codes = [
        code
        for alphabets in glyphs.SPLITS.values()
        for ranges in alphabets.values()
        for first, last in ranges
        for code in range(first, last + 1)
    ]
    assert len(names) == len(set(names))
    assert len(codes) == len(set(codes))


def test_every_image_is_small_grey_and_shows_ink(rendered):
    for images in all_alphabets(rendered).values():
        assert images.shape[1:] == (20, 28, 28)
        assert images.dtype == torch.float32
        assert images.min() >= 0
        assert images.max() <= 1
        assert images.amax((-1, -2)).min() > 0.3
        assert images.mean((-1, -2)).max() < 0.6


def test_there_are_enough_characters_to_learn_from(rendered):
    sizes = {split: sum(map(len, alphabets.values())) for split, alphabets in rendered.items()}
    assert sizes["train"] > 1500
    assert sizes["validation"] > 100
    assert sizes["test"] > 150


def test_no_image_is_there_twice(rendered):
    prints = [
        one.numpy().tobytes() for x in all_alphabets(rendered).values() for one in x.flatten(0, 1)
    ]
    assert len(prints) == len(set(prints))


def test_the_seed_decides_the_images(monkeypatch):
    monkeypatch.setattr(glyphs, "SPLITS", FEW)
    first, again, other = (glyphs.render(seed)["test"]["Lao"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape == other.shape
    assert not torch.equal(first, other)


def test_a_character_that_looks_like_an_earlier_one_is_dropped():
    a, b = np.zeros((2, 2, 56, 56), dtype=np.uint8)
    a[:, 10:20], b[:, :, 10:20] = 255, 255
    seen = []
    assert list(glyphs._drop_alike({"a": a, "b": b, "c": a.copy()}, seen)) == ["a", "b"]
    assert list(glyphs._drop_alike({"d": b.copy()}, seen)) == []


def test_a_face_without_the_character_draws_no_box():
    path = glyphs._font_paths()[0]
    font = ImageFont.truetype(path, 64, layout_engine=ImageFont.Layout.BASIC)
    has, lacks = (font, {ord("A")}), (font, set())
    assert list(glyphs._drawings(((65, 66),), [has, lacks, has])) == ["A"]
    assert len(glyphs._drawings(((65, 66),), [has, lacks, has])["A"]) == 2
    assert glyphs._drawings(((65, 66),), [has, lacks]) == {}


def test_a_missing_font_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(glyphs.matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(
        episodes.DataError, match=r"expected a font .* at .*DejaVuSans\.ttf; reinst"
    ):
        glyphs.render()


def coded(characters, drawings, offset=0.0):
    """Images that say who they are: pixel values tell alphabet, character and drawing."""
    code = 100 * torch.arange(characters)[:, None] + torch.arange(drawings) + offset
    return code[..., None, None].expand(-1, -1, 2, 2)


def test_a_task_has_right_labels_and_no_image_twice():
    data = {"one": coded(7, 20), "two": coded(9, 20, offset=0.5)}
    tasks = episodes.Episodes(data, ways=5, shots=2, queries=3).fixed(50, seed=0)
    for task in tasks:
        assert task.support.shape == (10, 1, 2, 2)
        assert task.query.shape == (15, 1, 2, 2)
        support, query = task.support[:, 0, 0, 0], task.query[:, 0, 0, 0]
        codes = torch.cat([support, query])
        labels = torch.cat([task.support_labels, task.query_labels])
        assert len(codes.unique()) == 25
        assert len((codes % 1).unique()) == 1  # one alphabet
        pairs = set(zip((codes // 100).tolist(), labels.tolist()))
        assert len(pairs) == 5 == len({character for character, _ in pairs})
        assert sorted(label for _, label in pairs) == [0, 1, 2, 3, 4]
    assert len({(task.support % 1).max().item() for task in tasks}) == 2  # both alphabets come up


def test_tasks_depend_on_their_seed_only():
    drawer = episodes.Episodes({"one": coded(9, 20)}, ways=5, shots=1, queries=2)
    first, again, other = (drawer.fixed(5, seed) for seed in (3, 3, 4))
    same = [torch.equal(a.query, b.query) for a, b in zip(first, again)]
    assert all(same)
    assert not all(torch.equal(a.query, b.query) for a, b in zip(first, other))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "expected at least one alphabet, got none"),
        ({"A": coded(4, 20)}, "at least 5 characters of 4 drawings, got 4 of 20, at alphabet 'A'"),
        ({"A": coded(5, 3)}, "at least 5 characters of 4 drawings, got 5 of 3, at alphabet 'A'"),
    ],
)
def test_too_little_data_is_refused(data, message):
    with pytest.raises(episodes.DataError, match=message):
        episodes.Episodes(data, ways=5, shots=1, queries=3)


def write_omniglot(root, background=("Avestan", "Bengali", "Cree"), evaluation=("Tibetan",)):
    """Write a small Omniglot: black strokes on white, 105 pixels square, one bit deep."""
    folders = [root / "images_background" / name for name in background]
    folders += [root / "images_evaluation" / name for name in evaluation]
    for alphabet, character in itertools.product(folders, range(5)):
        folder = alphabet / f"character{character:02}"
        folder.mkdir(parents=True)
        for drawing in range(20):
            pixels = np.full((105, 105), 255, dtype=np.uint8)
            pixels[5 * drawing : 5 * drawing + 5, 15 * character : 15 * character + 15] = 0
            Image.fromarray(pixels).convert("1").save(folder / f"{drawing:02}.png")


def test_omniglot_is_read_small_and_inverted(tmp_path):
    write_omniglot(tmp_path)
    splits = omniglot.read(tmp_path)
    assert {split: list(alphabets) for split, alphabets in splits.items()} == {
        "train": ["Bengali", "Cree"],
        "validation": ["Avestan"],
        "test": ["Tibetan"],
    }
    for images in all_alphabets(splits).values():
        assert images.shape == (5, 20, 28, 28)
        assert images.dtype == torch.float32
        ink = images.sum((-1, -2)) * (105 / 28) ** 2
        torch.testing.assert_close(ink, torch.full_like(ink, 75), rtol=0.1, atol=0)
        assert images[0, 0, 0, 0] == 1
        assert images[0, 0, -1, -1] == 0


def remove_evaluation(root):
    (root / "images_evaluation").rename(root / "elsewhere")


def empty_alphabet(root):
    (root / "images_background" / "Armenian").mkdir()


def lose_drawing(root):
    next((root / "images_background" / "Cree" / "character03").glob("*.png")).unlink()


def spoil_drawing(root):
    (root / "images_evaluation" / "Tibetan" / "character01" / "07.png").write_bytes(b"not a png")


def copy_alphabet(root):
    (root / "images_background" / "Cree").rename(root / "images_background" / "Tibetan")


def one_alphabet(root):
    for name in ("Bengali", "Cree"):
        (root / "images_background" / name).rename(root / name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_evaluation, "expected folders of alphabets, got no folder, at .*images_evaluation"),
        (empty_alphabet, "expected folders of characters, got an empty folder, at .*Armenian"),
        (lose_drawing, r"expected 20 drawings \(\.png\), got 19, at .*character03; unpack"),
        (spoil_drawing, "expected a PNG image, got a file that cannot be read, at .*07.png"),
        (copy_alphabet, r"alphabets that training never sees, got \['Tibetan'\] in both, at"),
        (one_alphabet, "expected at least 2 alphabets, got 1, at .*images_background"),
    ],
)
def test_malformed_omniglot_is_refused(tmp_path, spoil, message):
    write_omniglot(tmp_path)
    spoil(tmp_path)
    with pytest.raises(episodes.DataError, match=f"^few_shot: .*{message}"):
        omniglot.read(tmp_path)
