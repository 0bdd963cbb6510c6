# SPDX-License-Identifier: Apache-2.0
"""The states of torch's random numbers, to draw the same ones again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch

States: TypeAlias = list[tuple[Callable[[Any], Any], Any]]  # (setter, what to give it)

LOCK = threading.RLock()  # the states belong to the process: one thread at a time changes them


def random_states(generators: Iterable[torch.Generator] = ()) -> States:
    """Those of torch's own generators and of the ones given."""
    states: States = [(torch.set_rng_state, torch.get_rng_state())]
    kind = accelerator()
    if kind is not None:
        device = torch.get_device_module(kind)
        in_use = getattr(device, "is_initialized", device.is_available)
        if in_use():  # else nothing random has happened there
            if hasattr(device, "get_rng_state_all"):
                states.append((device.set_rng_state_all, device.get_rng_state_all()))
            else:
                states.append((device.set_rng_state, device.get_rng_state()))
    states += [(generator.set_state, generator.get_state()) for generator in generators]
    return states


def accelerator() -> torch.device | None:
    """The one torch was built for, found without starting it, so that a process may still fork."""
    try:
        return torch.accelerator.current_accelerator()
    except RuntimeError:  # torch 2.6; later ones return None
        return None


def restore(states: States) -> None:
    """Go back to them."""
    for setter, state in states:
        setter(state)


class Draws:
    """What a first run draws from torch's random numbers, for other runs to draw again.

    Example:
        >>> draws = Draws()
        >>> first = torch.rand(2)
        >>> draws.end()
        >>> draws.again()
        >>> bool((torch.rand(2) == first).all())
        True
        >>> draws.go_on()
    """

    def __init__(self) -> None:
        with LOCK:
            self._start = random_states()
        self._end: States = []
        self._any = True

    def end(self) -> None:
        """The first run is over; where it drew nothing, states are left alone from now on."""
        with LOCK:
            self._end = random_states()
        self._any = _tensors(self._start) != _tensors(self._end)

    def again(self) -> None:
        """Start another run."""
        if self._any:
            with LOCK:
                restore(self._start)

    def go_on(self) -> None:
        """Leave the random numbers as the first run did."""
        if self._any:
            with LOCK:
                restore(self._end)


def _tensors(states: States) -> list[bytes]:
    """The states as values to compare."""
    found = (state if isinstance(state, list) else [state] for _, state in states)
    return [tensor.numpy().tobytes() for each in found for tensor in each]
