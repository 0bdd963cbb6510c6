# SPDX-License-Identifier: Apache-2.0
"""Running a computation again in the surroundings of its first run."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from optdiff._random_states import States, accelerator, random_states, restore
from optdiff._tracking import below_every_level, is_wrapped


class _Called(NamedTuple):
    """A module as the first run found it."""

    module: nn.Module
    training: bool
    buffers: dict[str, torch.Tensor]
    frozen: dict[str, tuple[torch.Tensor, int]]  # parameter and its version


class Snapshots:
    """Copies of buffers, shared by all recordings that find a buffer unchanged."""

    def __init__(self) -> None:
        self._copies = WeakTensorKeyDictionary()  # tensor -> its last copy

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of the tensor as it is now."""
        with below_every_level():  # a step may call its modules inside torch.func.grad
            copied = self._copies.get(tensor)
            # versions do not tell: batch normalisation overwrites its statistics without one
            if copied is None or not torch.equal(copied, tensor):
                self._copies[tensor] = copied = tensor.detach().clone()
        return copied


class Recording:
    """What a computation reads besides its inputs, noted in its first run and given to the others.

    That is: the random number generators (CPU, accelerators, and ``generators``), the autocast
    state, and of every module called in it the buffers and the training flag. A later run works on
    copies of the buffers and leaves everything behind as it was.

    Args:
        who: Who is named in errors.
        snapshots: Where copies of buffers are shared with other recordings.
        generators: Further random number generators.
    """

    def __init__(
        self, who: str, snapshots: Snapshots, generators: Iterable[torch.Generator] = ()
    ) -> None:
        self._who = who
        self._snapshots = snapshots
        self._generators = list(generators)
        self._random: States | None = None
        self._autocast: list[dict[str, Any]] = []
        self._called: dict[nn.Module, _Called] = {}

    @property
    def made(self) -> bool:
        """Whether the first run has begun."""
        return self._random is not None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run inside: record the first time, repeat afterwards.

        Raises:
            RuntimeError: A parameter of a module that was called has been overwritten since.
            ValueError: The first run has put other tensors in the place of parameters.
        """
        if self._random is None:
            self._random = random_states(self._generators)
            self._autocast = _autocast_states()
            newest = _newest_node()
            with self._watched():
                yield
            self._refuse_new_parameters(newest)
            return
        self._check_parameters()
        live = random_states(self._generators)
        with ExitStack() as stack:
            stack.callback(restore, live)
            restore(self._random)
            for state in self._autocast:
                stack.enter_context(torch.autocast(**state))
            stack.enter_context(self._modules_as_found())
            yield

    @contextmanager
    def _watched(self) -> Iterator[None]:
        thread = threading.get_ident()
        found = WeakTensorKeyDictionary()  # buffer -> copy: several modules may share a buffer

        def copied(buffer: torch.Tensor) -> torch.Tensor:
            if buffer not in found:
                found[buffer] = self._snapshots.of(buffer)
            return found[buffer]

        def note(module: nn.Module, _: Any) -> None:
            if torch.compiler.is_compiling():  # the note would be taken once, while tracing
                raise RuntimeError(
                    f"{self._who}: expected modules that are not compiled under checkpoint, got "
                    f"{type(module).__name__}; leave out checkpoint, or torch.compile"
                )
            if module in self._called or threading.get_ident() != thread:
                return
            buffers = {
                name: copied(buffer)
                for name, buffer in module._buffers.items()
                if buffer is not None and not is_wrapped(buffer)
            }
            frozen = {
                name: (param, param._version)
                for name, param in module._parameters.items()
                if isinstance(param, nn.Parameter)
            }
            self._called[module] = _Called(module, module.training, buffers, frozen)

        hook = register_module_forward_pre_hook(note)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _modules_as_found(self) -> Iterator[None]:
        live = [(m, m.training, dict(m._buffers)) for m in self._called]
        own: dict[int, torch.Tensor] = {}  # one copy of a buffer that several modules share
        for module, training, buffers, _ in self._called.values():
            module.training = training
            for name, kept in buffers.items():
                module._buffers[name] = own.setdefault(id(kept), kept.clone())
        try:
            yield
        finally:
            for module, training, was in live:
                module.training = training
                module._buffers.update(was)

    def _refuse_new_parameters(self, newest: int) -> None:
        for module in self._called:
            for name, param in module._parameters.items():
                if param is None or param.grad_fn is None:
                    continue
                if param.grad_fn._sequence_nr() > newest:
                    raise ValueError(
                        f"{self._who}: expected steps that leave the parameters of modules as "
                        f"they are, got one replaced, at {name!r} of {type(module).__name__}; "
                        "carry dict(module.named_parameters()), and call the module by "
                        "torch.func.functional_call"
                    )

    def _check_parameters(self) -> None:
        for module, _, _, frozen in self._called.values():
            for name, (param, version) in frozen.items():
                if param._version != version:
                    raise RuntimeError(
                        f"{self._who}: expected parameters that steps read to stay as they were "
                        f"until the backward pass, got one overwritten, at {name!r} of "
                        f"{type(module).__name__}; go backward before changing it"
                    )


def _newest_node() -> int:
    """The number of the newest node of the graph; later ones have higher numbers."""
    with below_every_level(), torch.inference_mode(False), torch.enable_grad():
        made = torch.zeros((), requires_grad=True).clone().grad_fn
    return made._sequence_nr()


def _autocast_states() -> list[dict[str, Any]]:
    found = accelerator()
    kinds = {"cpu", "cpu" if found is None else found.type}
    return [
        {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        for kind in sorted(kinds)
        if torch.amp.is_autocast_available(kind)
    ]
