# SPDX-License-Identifier: Apache-2.0
"""Names for tensors: mappings, modules, module states, generators, or lists of those."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any

import torch

from optviz._identity import key_of, key_of_function


class Names:
    """Names by what finds a node, and the tensors that were named."""

    def __init__(self, who: str, given: Any = None) -> None:
        self._who = who
        self.by_key: dict[tuple[Any, ...], str] = {}
        self.shown: list[tuple[str, torch.Tensor]] = []
        self.made: set[tuple[Any, ...]] = set()  # functions that made what a module state names
        waiting = [given]
        while waiting:
            waiting[:0] = self._take(waiting.pop(0))

    def _take(self, given: Any) -> list[Any]:
        """Note what one entry names; return the entries that it holds."""
        if given is None:
            return []
        if isinstance(given, torch.Tensor):
            return [{f"input {len(self.shown)}": given}]
        if isinstance(given, torch.nn.Module):
            return [dict(given.named_parameters())]
        if hasattr(given, "visual_contents"):
            self._take_state(given)
            return []
        if isinstance(given, Mapping):
            for name, tensor in given.items():
                if not isinstance(tensor, torch.Tensor):
                    raise TypeError(
                        f"{self._who}: expected tensors by name, got {type(tensor).__name__}, at "
                        f"[{name!r}]"
                    )
                self._note(key_of(tensor), str(name))
                self.shown.append((str(name), tensor))
            return []
        if isinstance(given, Generator):
            return [dict(_pairs(self._who, given, len(self.shown)))]
        if isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
            return list(given)
        raise TypeError(
            f"{self._who}: expected a mapping of tensors, a module, a module state, a generator or "
            f"a list of those, got {type(given).__name__}"
        )

    def _take_state(self, state: Any) -> None:
        """Names that ``extract_state_dict(..., enable_visual=True)`` noted."""
        if state.visual_contents is None:
            raise ValueError(
                f"{self._who}: expected a module state with names, got one without; call "
                "extract_state_dict(module, enable_visual=True)"
            )
        for made_by, named in state.visual_contents.items():
            if isinstance(made_by, torch.Tensor):
                self._note(key_of(made_by), named)
                self.shown.append((named, made_by))
            else:
                name, tensor = named
                self._note(key_of_function(made_by), name)
                self.made.add(key_of_function(made_by))
                self.shown.append((name, tensor))

    def _note(self, key: tuple[Any, ...], name: str) -> None:
        known = self.by_key.get(key)
        if known is None:
            self.by_key[key] = name
        elif name not in known.split(", "):  # a tied tensor has all its names
            self.by_key[key] = f"{known}, {name}"


def _pairs(who: str, given: Generator[Any, None, None], start: int) -> Iterable[tuple[str, Any]]:
    for index, entry in enumerate(given, start):
        if isinstance(entry, torch.Tensor):
            yield f"input {index}", entry
        elif isinstance(entry, tuple) and len(entry) == 2:
            yield entry
        else:
            raise TypeError(
                f"{who}: expected a generator of tensors or of (name, tensor), got "
                f"{type(entry).__name__}, at {index}"
            )
