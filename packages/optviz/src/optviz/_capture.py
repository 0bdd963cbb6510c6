# SPDX-License-Identifier: Apache-2.0
"""From live autograd functions to plain data, without recursion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from optviz._functions import attributes_of, dtype_name, kept_by, made_by
from optviz._identity import key_of, key_of_function, number_of
from optviz._names import Names
from optviz._nodes import Edge, Node, Saved, Scope
from optviz._statistics import groups_of, statistics_of
from optviz.graph import Graph
from optviz.scopes import Attribution

_STAGES = ("gradient", "transform", "apply", "fused")
SHOWN = ("saved", "attributes", "shapes")


def draw(
    outputs: Any,
    inputs: Any = None,
    names: Mapping[str, torch.Tensor] | None = None,
    fold: bool = True,
    show: Iterable[str] = (),
) -> Graph:
    """Take the autograd graph of some tensors as plain data.

    The walk is iterative, keeps no tensor alive and changes no gradient; ids depend on the graph
    alone. Scopes, steps and orders are those that :func:`optviz.scope`, :func:`optviz.instrument`
    and :func:`optviz.record` have noted in this thread.

    Args:
        outputs: A tensor, or a mapping or sequence (nested) of tensors.
        inputs: What to name, and to show even where nothing reaches it: a mapping of tensors, a
            module, a module state with names, a generator, or a list of those.
        names: More names, as a mapping to tensors.
        fold: Show repeated steps once and long stretches as one box in pictures.
        show: Any of ``"saved"``, ``"attributes"``, ``"shapes"``: what pictures print on every node.

    Raises:
        TypeError: No tensor among the outputs, inputs of another kind, or ``show`` as one string.
        ValueError: An output without a graph, or ``show`` of something unknown.

    Example:
        >>> import torch
        >>> w = torch.ones(3, requires_grad=True)
        >>> draw({"loss": (w * w).sum()}, {"w": w})
        Graph(ops=2, leaves=1, outputs=1, edges=4, saved_bytes=0)
    """
    if isinstance(show, str):
        raise TypeError(f"draw: expected show as a list of names, got {show!r}; write [{show!r}]")
    shown = tuple(show)
    if unknown := [name for name in shown if name not in SHOWN]:
        raise ValueError(f"draw: expected show among {list(SHOWN)}, got {unknown}")
    targets = named_outputs("draw", outputs)
    known = Names("draw", [inputs, names])
    walk = Walk(tensor.grad_fn for _, tensor in targets)
    capture = _Capture(walk, known)
    for name, tensor in targets:
        capture.add_output(name, tensor)
    for name, tensor in known.shown:
        capture.add_unreached(name, tensor)
    return Graph(tuple(capture.nodes), tuple(capture.edges), fold, shown)


def named_outputs(who: str, outputs: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors in a nest of mappings and sequences, named by where they stand."""
    found: list[tuple[str, torch.Tensor]] = []
    waiting = [("", outputs)]
    while waiting:
        path, value = waiting.pop(0)
        if isinstance(value, torch.Tensor):
            if not value.requires_grad:
                raise ValueError(
                    f"{who}: expected outputs with a graph, got {_shape(value)} that does not "
                    f"require grad, at {path or 'the output'}; ask why_no_grad under record()"
                )
            found.append((path, value))
        elif isinstance(value, Mapping):
            waiting[:0] = [(f"{path}.{k}" if path else str(k), v) for k, v in value.items()]
        elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            waiting[:0] = [(f"{path}[{k}]", v) for k, v in enumerate(value)]
        elif value is not None:
            raise TypeError(
                f"{who}: expected tensors, or mappings and sequences of them, got "
                f"{type(value).__name__}, at {path or 'the output'}"
            )
    if not found:
        raise TypeError(f"{who}: expected at least one tensor, got none")
    if len(found) == 1 and not found[0][0]:
        return [("output", found[0][1])]
    return [(f"output{path}" if path.startswith("[") else path, tensor) for path, tensor in found]


class Walk:
    """The functions that some functions lead to, inputs first, each once.

    It keeps them alive, so that their Python objects stay the same: use it and drop it.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self.functions: list[Any] = []
        self.following: list[tuple[tuple[Any, int], ...]] = []
        self.index: dict[Any, int] = {}
        for root in roots:
            if root is not None:
                self._add(root)

    def _add(self, root: Any) -> None:
        if root in self.index:
            return
        entered = {root}
        stack = [(root, root.next_functions, 0)]
        while stack:
            function, following, at = stack.pop()
            while at < len(following):
                below = following[at][0]
                at += 1
                if below is not None and below not in self.index and below not in entered:
                    entered.add(below)
                    stack.append((function, following, at))
                    stack.append((below, below.next_functions, 0))
                    break
            else:
                self.index[function] = len(self.functions)
                self.functions.append(function)
                self.following.append(following)


class _Capture:
    def __init__(self, walk: Walk, names: Names) -> None:
        self._walk, self._names = walk, names
        self._storages: dict[Any, int] = {}
        self._attribution = Attribution.now()
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []
        self._leaves: dict[tuple[Any, ...], int] = {}
        self._entries: dict[int, int] = {}
        self._scopes: dict[int, tuple[Scope, ...]] = {}  # by ids of what the attribution holds
        for index, (function, following) in enumerate(zip(walk.functions, walk.following)):
            self.nodes.append(self._node(index, function))
            for slot, (below, output) in enumerate(following):
                if below is not None:
                    self.edges.append(Edge(walk.index[below], index, slot, output=output))
            self._recognise_apply(index, following)

    def _recognise_apply(self, index: int, following: Sequence[tuple[Any, int]]) -> None:
        """An addition to what a step gave, made right after it, is how updates are applied."""
        node = self.nodes[index]
        if node.label != "Add" or (node.scopes and node.scopes[-1].kind in _STAGES):
            return
        inputs = [
            self.nodes[self._walk.index[below]] for below, _ in following if below is not None
        ]
        steps = [
            entry.scopes[:-1]
            for entry in inputs
            if entry.scopes and entry.scopes[-1].kind in ("transform", "fused")
        ]
        if len(steps) == 1:
            step = steps[0]
            while step and step[-1].kind != "step":
                step = step[:-1]
            if step:
                applied = Scope("apply", -step[-1].entry, "apply")
                self.nodes[index] = replace(node, scopes=(*step, applied))

    def _node(self, index: int, function: Any) -> Node:
        key = key_of_function(function)
        variable = getattr(function, "variable", None)
        if variable is not None:
            self._leaves[key] = index
            return self._leaf(index, self._names.by_key.get(key, ""), variable, key)
        kept = kept_by(function)
        saved = tuple(self._saved(name, tensor) for name, tensor in kept.tensors)
        scopes, order = self._attribution.of(function._sequence_nr())
        scopes = self._renumbered(scopes)
        name = function.name()
        shape, dtype = made_by(function)
        custom = isinstance(function, torch.autograd.function.BackwardCFunction)
        attributes = attributes_of(function)
        given = self._names.by_key.get(key)
        if given is not None:
            attributes = (("named", given), *attributes)
        # A derivative of a derivative is told by its name even where nobody took notes.
        order = max(order, name.count("Backward") - 1) if not custom else order
        return Node(
            index,
            "op",
            name,
            shape,
            dtype,
            scopes,
            order,
            saved,
            attributes,
            custom,
            kept.freed,
            tuple(kept.overwritten),
            tuple(kept.by_hooks),
            groups_of(function) if custom else None,
            statistics_of(function),
            key=key,
        )

    def _renumbered(self, scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
        """Entries counted over this graph: what ran before must not tell."""
        found = self._scopes.get(id(scopes))
        if found is None:
            entries = self._entries
            self._scopes[id(scopes)] = found = tuple(
                replace(scope, entry=entries.setdefault(scope.entry, len(entries) + 1))
                for scope in scopes
            )
        return found

    def _leaf(self, index: int, name: str, tensor: torch.Tensor, key: tuple[Any, ...]) -> Node:
        return Node(
            index,
            "leaf",
            name or f"leaf {len(self._leaves) - 1}",
            tuple(tensor.shape),
            dtype_name(tensor.dtype),
            attributes=() if tensor.requires_grad else (("requires_grad", "False"),),
            storage=self._storage(tensor)[0],
            key=key,
        )

    def add_output(self, name: str, tensor: torch.Tensor) -> None:
        index = len(self.nodes)
        if tensor.grad_fn is None:
            source = self._leaf_index(name, tensor)
            index = len(self.nodes)
        else:
            source = self._walk.index[tensor.grad_fn]
        view = (("view", "yes"),) if tensor._is_view() else ()
        shape, dtype = tuple(tensor.shape), dtype_name(tensor.dtype)
        self.nodes.append(Node(index, "output", name, shape, dtype, attributes=view))
        output = 0 if tensor.grad_fn is None else tensor.output_nr
        self.edges.append(Edge(source, index, 0, output=output))

    def _leaf_index(self, name: str, tensor: torch.Tensor) -> int:
        key = key_of(tensor)
        if key not in self._leaves:
            self._leaves[key] = len(self.nodes)
            given = self._names.by_key.get(key, "")
            self.nodes.append(self._leaf(len(self.nodes), given, tensor, key))
        return self._leaves[key]

    def add_unreached(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.grad_fn is None:
            self._leaf_index(name, tensor)

    def _saved(self, name: str, tensor: torch.Tensor) -> Saved:
        storage, size = self._storage(tensor)
        return Saved(name, tuple(tensor.shape), dtype_name(tensor.dtype), size, storage)

    def _storage(self, tensor: torch.Tensor) -> tuple[int, int]:
        """A number for the memory of a tensor, and how much it is."""
        try:
            storage = tensor.untyped_storage()
            size = storage.nbytes()
            key: Any = storage._cdata if size else ("empty", number_of(tensor))
        except (NotImplementedError, RuntimeError):  # sparse tensors and wrappers have none
            size = tensor.numel() * tensor.element_size()
            key = ("object", number_of(tensor))
        return self._storages.setdefault(key, len(self._storages)), size


def _shape(tensor: torch.Tensor) -> str:
    return f"{dtype_name(tensor.dtype)}{list(tensor.shape)}"
