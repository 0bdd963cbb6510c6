# SPDX-License-Identifier: Apache-2.0
"""Glyph alphabets, rendered offline from the fonts that ship inside the matplotlib wheel.

One class is one character. Its images are that character in several typefaces, each pushed through
a random affine map. No character of a test alphabet looks like one of a training alphabet: a
character that renders (nearly) like an earlier one, in any alphabet, is dropped.
"""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from episodes import DataError
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

SIZE = 28
IMAGES_PER_CLASS = 20

FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)

# Ranges of Unicode, inclusive, split by alphabet: what is tested is never seen in training.
SPLITS: dict[str, dict[str, tuple[tuple[int, int], ...]]] = {
    "train": {
        "Latin": ((0x0041, 0x02AF), (0x1D00, 0x1D25), (0x2C60, 0x2C7F), (0xA720, 0xA7FF)),
        "Greek": ((0x0370, 0x03FF),),
        "Cyrillic": ((0x0400, 0x052F), (0xA640, 0xA69F)),
        "Mathematics": ((0x2200, 0x22FF), (0x2A00, 0x2AFF)),
        "Aboriginal syllabics": ((0x1400, 0x167F),),
        "Symbols": ((0x2190, 0x21FF), (0x2300, 0x23FF), (0x25A0, 0x27BF)),
        "Lao": ((0x0E80, 0x0EFF),),
        "Tifinagh": ((0x2D30, 0x2D7F),),
    },
    "validation": {
        "Arabic": ((0x0620, 0x06FF),),
        "Hebrew": ((0x05D0, 0x05EA),),
        "N'Ko": ((0x07CA, 0x07EA),),
    },
    "test": {
        "Armenian": ((0x0531, 0x0587),),
        "Georgian": ((0x10A0, 0x10FF), (0x2D00, 0x2D2F)),
    },
}

_EM = 64  # pixels per em when a character is first drawn
_CANVAS = 2 * SIZE  # jitter works at twice the final resolution, so that edges stay smooth
_EXTENT = 36  # longer side of a character on that canvas
_ALIKE = 0.12  # two characters are one class when their ink differs by less than this share
_KINDS = frozenset({"Lu", "Ll", "Lo", "Sm", "So"})  # letters and symbols, no marks, no modifiers


def _font_paths() -> list[Path]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = [folder / f"{face}.ttf" for face in FACES]
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"few_shot: expected a font of the matplotlib wheel, got nothing, at {path}; "
                "reinstall matplotlib from its wheel"
            )
    return paths


def _draw(font: ImageFont.FreeTypeFont, char: str) -> np.ndarray | None:
    """Draw ``char`` in the middle of the canvas, its longer side ``_EXTENT``; ``None`` if blank."""
    box = font.getbbox(char)
    width, height = math.ceil(box[2] - box[0]), math.ceil(box[3] - box[1])
    if width <= 0 or height <= 0:
        return None
    ink = Image.new("L", (width, height))
    ImageDraw.Draw(ink).text((-box[0], -box[1]), char, fill=255, font=font)
    tight = ink.getbbox()
    if tight is None:
        return None
    ink = ink.crop(tight)
    scale = _EXTENT / max(ink.size)
    ink = ink.resize([max(1, round(side * scale)) for side in ink.size], Image.Resampling.BOX)
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    canvas.paste(ink, ((_CANVAS - ink.width) // 2, (_CANVAS - ink.height) // 2))
    return np.asarray(canvas)


def _drawings(
    ranges: tuple[tuple[int, int], ...],
    fonts: list[tuple[ImageFont.FreeTypeFont, set[int]]],
) -> dict[str, np.ndarray]:
    """All faces that really have each character: ``{char: uint8 (faces, canvas, canvas)}``."""
    drawings = {}
    for first, last in ranges:
        for code in range(first, last + 1):
            char = chr(code)
            if unicodedata.category(char) not in _KINDS or unicodedata.decomposition(char):
                continue
            drawn = [_draw(font, char) for font, charmap in fonts if code in charmap]
            faces = [image for image in drawn if image is not None]
            if len(faces) >= 2:
                drawings[char] = np.stack(faces)
    return drawings


def _jitter(drawings: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Map each drawing ``(batch, canvas, canvas)`` by its own random affine map to final size."""
    rotation, shear, width, height, right, down = (
        2 * torch.rand(6, len(drawings), generator=generator, dtype=torch.float32) - 1
    )
    angle, shear = rotation * math.radians(20), shear * 0.25
    width, height = torch.exp(width * 0.25), torch.exp(height * 0.25)
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack(
        [
            torch.stack([cos * width, (cos * shear - sin) * width, right * 0.15], dim=-1),
            torch.stack([sin * height, (sin * shear + cos) * height, down * 0.15], dim=-1),
        ],
        dim=1,
    )
    grid = F.affine_grid(rows, [len(drawings), 1, SIZE, SIZE], align_corners=False)
    smooth = F.avg_pool2d(drawings.unsqueeze(1), 3, stride=1, padding=1)
    return F.grid_sample(smooth, grid, align_corners=False).squeeze(1).clamp(0, 1)


def _images(drawings: dict[str, np.ndarray], generator: torch.Generator) -> torch.Tensor:
    """Give each class its images ``(classes, images, 28, 28)``: faces in turn, each jittered."""
    classes = []
    for faces in drawings.values():
        order = torch.randperm(len(faces), generator=generator)
        chosen = order[torch.arange(IMAGES_PER_CLASS) % len(faces)]
        canvas = torch.from_numpy(faces).float().div(255)[chosen]
        classes.append(_jitter(canvas, generator))
    return torch.stack(classes)


def _drop_alike(drawings: dict[str, np.ndarray], seen: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Keep the characters that look like none before them; add what they look like to ``seen``."""
    coarse = {
        char: faces[0].reshape(SIZE // 2, 4, SIZE // 2, 4).mean(axis=(1, 3), dtype=np.float32)
        for char, faces in drawings.items()
    }
    known = np.zeros((len(seen) + len(coarse), (SIZE // 2) ** 2), dtype=np.float32)
    for row, looks in enumerate(seen):
        known[row] = looks
    kept = {}
    for char, looks in coarse.items():
        looks = looks.ravel()
        before = known[: len(seen)]
        differs = np.abs(before - looks).sum(axis=1) / (before.sum(axis=1) + looks.sum())
        if not (differs < _ALIKE).any():
            known[len(seen)] = looks
            seen.append(looks)
            kept[char] = drawings[char]
    return kept


def render(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """Render every alphabet.

    Args:
        seed: Seeds the jitter; the classes do not depend on it.

    Returns:
        ``{split: {alphabet: images}}`` with float32 images ``(classes, 20, 28, 28)`` in ``[0, 1]``,
        ink bright on black, for the splits ``train``, ``validation`` and ``test``.

    Raises:
        DataError: A font of the matplotlib wheel is missing.
    """
    generator = torch.Generator().manual_seed(seed)
    fonts = [
        (
            ImageFont.truetype(path, _EM, layout_engine=ImageFont.Layout.BASIC),
            set(FT2Font(path).get_charmap()),
        )
        for path in _font_paths()
    ]
    seen: list[np.ndarray] = []
    splits: dict[str, dict[str, torch.Tensor]] = {}
    for split, alphabets in SPLITS.items():
        splits[split] = {}
        for alphabet, ranges in alphabets.items():
            kept = _drop_alike(_drawings(ranges, fonts), seen)
            splits[split][alphabet] = _images(kept, generator)
    return splits
