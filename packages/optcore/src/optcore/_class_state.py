# SPDX-License-Identifier: Apache-2.0
"""The functional state of a class, kept per parameter under torch's keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch

from optcore._leafwise import parted
from optcore._masking import MaskedNode
from optcore._rows import OptimizerRow
from optcore._transform import GradientTransformation
from optcore._tree import (
    ParamDict,
    describe,
    is_param_dict,
)

if TYPE_CHECKING:
    pass

TREES = ("mask", "param_labels")  # what a transformation holds beside its hyperparameters
SHARED = "shared_state"  # group entry for state that belongs to no single parameter


class ClassState:
    """How the classes store the state of their transformation where torch looks for it."""

    row: OptimizerRow | None
    state: Any
    defaults: dict[str, Any]

    def _check_buffers(
        self, index: int, transformation: GradientTransformation, state: Any, params: ParamDict
    ) -> None:
        """Refuse what was loaded for, or assigned to, a parameter of another shape."""
        who = type(self).__name__
        for i, p in params.items():
            if p.grad is not None and p.grad.shape != p.shape:
                raise ValueError(
                    f"{who}: expected a gradient like its parameter {describe(p)}, got "
                    f"{describe(p.grad)}, at parameter {i} of group {index}"
                )
        if torch.compiler.is_compiling():
            return
        expected: dict[str, Any] = {}

        def note(name: str, slot: Any) -> None:
            expected.setdefault(name, slot)

        def check(name: str, slot: Any) -> None:
            for i, p in params.items() if is_param_dict(slot) else ():
                own = slot[i]
                if not isinstance(own, torch.Tensor) or not own.ndim or own.shape == p.shape:
                    continue
                if not expected:  # on the device without memory
                    like = [(j, torch.empty_like(q, device="meta")) for j, q in params.items()]
                    self._map_slots(note, transformation.init(ParamDict(like)))
                wanted = expected[name][i]
                if isinstance(wanted, torch.Tensor) and wanted.shape != own.shape:
                    raise ValueError(
                        f"{who}: expected {name!r} as {describe(wanted)}, got {describe(own)}, at "
                        f"parameter {i} of group {index}; load a state made for this parameter"
                    )

        self._map_slots(check, state)

    def _holds_trees(self, group: dict[str, Any], transformation: GradientTransformation) -> bool:
        """Whether something has a value per parameter: by its place in the group, in a dict."""
        if any(isinstance(group.get(name), dict) for name in self.defaults):
            return True
        for member in transformation._all():
            values = [*member._hyperparams.values(), *map(member._static.get, TREES)]
            for name in ("numbers", "schedules", "fixed"):  # of inject_hyperparams
                values += (member._static.get(name) or {}).values()
            if any(isinstance(value, dict) for value in values):
                return True
        return False

    def _read_state(
        self, transformation: GradientTransformation, group: dict[str, Any], params: ParamDict
    ) -> Any:
        """The functional state of some parameters, from what torch keeps per parameter."""
        shared = group.get(SHARED, {})
        implied = self.row.implied if self.row else {}
        counts = {name: torch.tensor(value) for name, value in implied.items()}

        def read(name: str, fresh: Any) -> Any:
            if not is_param_dict(fresh):
                return shared.get(name, fresh)
            slot = ParamDict()
            for i, p in params.items():
                own = self.state.get(p)
                kept = {**counts, **(own or {})}
                if own and name not in kept:
                    raise ValueError(
                        f"{type(self).__name__}: expected {name!r} in the state of parameter {i}, "
                        f"got {sorted(kept)}; load a state that this optimizer made"
                    )
                slot[i] = kept[name] if own else fresh[i]
                if isinstance(slot[i], tuple):
                    slot[i] = MaskedNode()  # kept as (), which every checkpoint can hold
            return self._parted(name, slot, params)

        fresh = params
        if not self._holds_trees(group, transformation):
            fresh = ParamDict((i, p) for i, p in params.items() if not self.state.get(p))
        return self._map_slots(read, transformation.init(fresh))

    def _parted(self, name: str, slot: ParamDict, params: ParamDict) -> ParamDict:
        """The slot with copies of counts on a GPU that parameters beside these share.

        A step in place advances such a count for all that have it.
        """
        shared = {value for value in slot.values() if _is_count_on_gpu(value)}
        if not shared:
            return slot
        own = {*params.values()}
        others = [kept.get(name) for p, kept in self.state.items() if p not in own]
        shared &= {value for value in others if _is_count_on_gpu(value)}
        copies = {count: parted(type(self).__name__, count) for count in shared}
        return ParamDict(
            (i, copies[value] if _is_count_on_gpu(value) and value in copies else value)
            for i, value in slot.items()
        )

    def _write_state(
        self, group: dict[str, Any], params: ParamDict, state: Any, known: Any = None
    ) -> None:
        """Keep the state per parameter, but for what stands there already in ``known``."""
        for name, slot in self._changed_slots(state, known):
            if is_param_dict(slot):
                for i, p in params.items():
                    if p.grad is None and not self.state.get(p):
                        continue  # its state is made when it moves
                    self.state[p][name] = () if isinstance(slot[i], MaskedNode) else slot[i]
            else:
                group.setdefault(SHARED, {})[name] = slot

    def _changed_slots(
        self, node: Any, known: Any, path: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, Any]]:
        """Torch's name and the value of each slot that is not the one in ``known``."""
        if node is known and node is not None:
            return
        if isinstance(node, tuple):
            names = getattr(node, "_fields", map(str, range(len(node))))
            old = known if isinstance(known, tuple) and len(known) == len(node) else repeat(None)
            for name, part, other in zip(names, node, old, strict=False):
                yield from self._changed_slots(part, other, (*path, name))
        elif isinstance(node, dict) and not is_param_dict(node):
            old = known if isinstance(known, dict) else {}
            for key, part in node.items():
                yield from self._changed_slots(part, old.get(key), (*path, str(key)))
        else:
            yield self._slot_name(path), node

    def _map_slots(
        self, fn: Callable[[str, Any], Any], node: Any, path: tuple[str, ...] = ()
    ) -> Any:
        """Map the per-parameter buffers and the other leaves of a state, with torch's names."""
        if isinstance(node, tuple):
            names = getattr(node, "_fields", map(str, range(len(node))))
            parts = [self._map_slots(fn, v, (*path, k)) for k, v in zip(names, node, strict=True)]
            return type(node)(*parts) if hasattr(node, "_fields") else tuple(parts)
        if isinstance(node, dict) and not is_param_dict(node):
            return {k: self._map_slots(fn, v, (*path, str(k))) for k, v in node.items()}
        return fn(self._slot_name(path), node)

    def _slot_name(self, path: tuple[str, ...]) -> str:
        keys = self.row.torch_keys if self.row and path else {}
        return keys.get(path[-1] if path else "", ".".join(path))


def _is_count_on_gpu(value: Any) -> bool:
    counts = isinstance(value, torch.Tensor) and value.dtype is torch.int64 and not value.ndim
    return counts and value.is_cuda
