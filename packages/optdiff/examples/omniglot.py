# SPDX-License-Identifier: Apache-2.0
"""Reads the folders of Omniglot (Lake et al., 2015) for those who have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from episodes import DataError
from PIL import Image, UnidentifiedImageError

SIZE = 28
DRAWINGS = 20  # Omniglot has every character drawn by twenty people
_LAYOUT = "images_background/<alphabet>/<character>/<drawing>.png"


def _folders(path: Path, what: str) -> list[Path]:
    found = sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
    if not found:
        got = "an empty folder" if path.is_dir() else "no folder"
        raise DataError(
            f"few_shot: expected {what}, got {got}, at {path}; give --root the folder that holds "
            f"images_background and images_evaluation, laid out as {_LAYOUT}"
        )
    return found


def _drawing(path: Path) -> np.ndarray:
    """Read one drawing as float32 ``(28, 28)`` in ``[0, 1]``, ink bright on black."""
    try:
        with Image.open(path) as image:
            grey = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BOX)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(
            f"few_shot: expected a PNG image, got a file that cannot be read, at {path}; "
            "unpack the archive again"
        ) from error
    return 1 - np.asarray(grey, dtype=np.float32) / 255


def _alphabet(folder: Path) -> torch.Tensor:
    characters = []
    for character in _folders(folder, "folders of characters"):
        files = sorted(character.glob("*.png"))
        if len(files) != DRAWINGS:
            raise DataError(
                f"few_shot: expected {DRAWINGS} drawings (.png), got {len(files)}, at {character}; "
                "unpack the archive again"
            )
        characters.append(np.stack([_drawing(file) for file in files]))
    return torch.from_numpy(np.stack(characters))


def read(root: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Read both folders; every sixth background alphabet becomes validation.

    Args:
        root: The folder that holds ``images_background`` and ``images_evaluation``.

    Returns:
        ``{split: {alphabet: images}}`` with float32 images ``(characters, 20, 28, 28)``.

    Raises:
        DataError: A folder is missing, empty, or does not hold twenty readable drawings.
    """
    background = _folders(root / "images_background", "folders of alphabets")
    evaluation = _folders(root / "images_evaluation", "folders of alphabets")
    if len(background) < 2:
        raise DataError(
            f"few_shot: expected at least 2 alphabets, got {len(background)}, "
            f"at {root / 'images_background'}; unpack the archive again"
        )
    shared = {folder.name for folder in background} & {folder.name for folder in evaluation}
    if shared:
        raise DataError(
            f"few_shot: expected test alphabets that training never sees, got {sorted(shared)} in "
            f"both, at {root}; remove them from one of the folders"
        )
    held_out = background[::6]
    train = [folder for folder in background if folder not in held_out]
    return {
        split: {folder.name: _alphabet(folder) for folder in folders}
        for split, folders in (
            ("train", train),
            ("validation", held_out),
            ("test", evaluation),
        )
    }
