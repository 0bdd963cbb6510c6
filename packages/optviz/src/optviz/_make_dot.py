# SPDX-License-Identifier: Apache-2.0
"""The picture that torchviz and TorchOpt draw, for code that calls them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from graphviz import Digraph

from optviz._capture import Walk
from optviz._functions import kept_by
from optviz._identity import key_of, key_of_function, number_of
from optviz._names import Names

_SAVED = "_saved_"


def make_dot(
    var: Any,
    params: Any = None,
    show_attrs: bool = False,
    show_saved: bool = False,
    max_attr_chars: int = 50,
) -> Digraph:
    """The autograd graph of tensors, as torchviz and TorchOpt draw it.

    Backward functions are grey, outputs green (the base of a view dark green), leaves light blue,
    saved tensors orange; a function that made a tensor of a named module state is light blue too.

    Args:
        var: A tensor, or a mapping or sequence (nested) of tensors.
        params: Names: a mapping of tensors, a module state from
            ``extract_state_dict(..., enable_visual=True, visual_prefix=...)``, a generator of
            tensors or of ``(name, tensor)``, or a list of those.
        show_attrs: Print what else the functions remember.
        show_saved: Draw the tensors that built-in functions save; those of Functions written in
            Python always are.
        max_attr_chars: Longer attributes are cut.

    Raises:
        TypeError: ``var`` holds no tensor, or ``params`` is of another kind.

    Differs:
        No recursion, so a graph may be deep; ids are the same for the same program. Functions
        whose saved tensors are freed are drawn without them.

    Example:
        >>> import torch, optviz
        >>> w = torch.ones(2, requires_grad=True)
        >>> print(optviz.make_dot((w * 2).sum(), {"w": w}).source.count("->"))
        4
    """
    names = Names("make_dot", params)
    outputs = _tensors("make_dot", var)
    dot = Digraph(
        node_attr={
            "style": "filled",
            "shape": "box",
            "align": "left",
            "fontsize": "10",
            "ranksep": "0.1",
            "height": "0.2",
            "fontname": "monospace",
        },
        graph_attr={"size": "12,12"},
    )
    drawing = _Drawing(dot, names, show_attrs, show_saved, max(max_attr_chars, 3))
    roots = [tensor.grad_fn for tensor in outputs]
    roots += [t._base.grad_fn for t in outputs if t._is_view() and t._base is not None]
    drawing.functions(Walk(roots))
    for tensor in outputs:
        drawing.output(tensor)
    resize_graph(dot)
    return dot


def resize_graph(dot: Digraph, size_per_element: float = 0.5, min_size: float = 12.0) -> None:
    """Set the size of a drawing by how much is in it, in place.

    Example:
        >>> import graphviz
        >>> dot = graphviz.Digraph(body=["a"] * 100)
        >>> resize_graph(dot)
        >>> dot.graph_attr["size"]
        '50.0,50.0'
    """
    size = max(min_size, len(dot.body) * size_per_element)
    dot.graph_attr.update(size=f"{size},{size}")


class _Drawing:
    def __init__(
        self, dot: Digraph, names: Names, show_attrs: bool, show_saved: bool, max_chars: int
    ) -> None:
        self._dot, self._names = dot, names
        self._show_attrs, self._show_saved, self._max_chars = show_attrs, show_saved, max_chars
        self._tensors: dict[int, str] = {}
        self._walk: Walk

    def functions(self, walk: Walk) -> None:
        self._walk = walk
        for index, (function, following) in enumerate(zip(walk.functions, walk.following)):
            key = key_of_function(function)
            named = self._names.by_key[key] if key in self._names.made else None
            variable = getattr(function, "variable", None)
            if variable is not None:
                self._dot.edge(self._tensor(variable, "lightblue"), f"f{index}")
            label = _function_label(function, self._show_attrs, self._max_chars)
            if named is None:
                self._dot.node(f"f{index}", label)
            else:
                size = _size(function._input_metadata[0].shape)
                self._dot.node(f"f{index}", f"{label}\n{named}\n {size}", fillcolor="lightblue")
            for below, _ in following:
                if below is not None:
                    self._dot.edge(f"f{walk.index[below]}", f"f{index}")
            self._saved(index, function)

    def _saved(self, index: int, function: Any) -> None:
        custom = isinstance(function, torch.autograd.function.BackwardCFunction)
        if not (custom or self._show_saved):
            return
        for name, tensor in kept_by(function).tensors:
            ends = [f"f{index}", self._tensor(tensor, "orange", None if custom else name)]
            self._dot.edge(*(reversed(ends) if custom else ends), dir="none")

    def output(self, tensor: torch.Tensor, color: str = "darkolivegreen1") -> str:
        number = number_of(tensor)
        known = number in self._tensors
        name = self._tensor(tensor, color)
        if known:
            return name
        if tensor.grad_fn is not None:
            self._dot.edge(f"f{self._walk.index[tensor.grad_fn]}", name)
        if tensor._is_view() and tensor._base is not None:
            self._dot.edge(self.output(tensor._base, "darkolivegreen3"), name, style="dotted")
        return name

    def _tensor(self, tensor: torch.Tensor, color: str, name: str | None = None) -> str:
        """Draw a tensor once; its name in the drawing."""
        number = number_of(tensor)
        if number not in self._tensors:
            self._tensors[number] = drawn = f"t{len(self._tensors)}"
            shown = name or self._names.by_key.get(key_of(tensor), "")
            self._dot.node(drawn, f"{shown}\n {_size(tensor.shape)}", fillcolor=color)
        return self._tensors[number]


def _function_label(function: Any, show_attrs: bool, max_chars: int) -> str:
    name = str(type(function).__name__)
    if not show_attrs:
        return name
    attributes = {}
    by_hooks = kept_by(function).by_hooks
    for attribute in dir(function):
        if not attribute.startswith(_SAVED) or attribute == "_saved_tensors":
            continue
        if attribute[len(_SAVED) :] in by_hooks:
            attributes[attribute[len(_SAVED) :]] = "[unpacked by a hook]"
            continue
        try:
            value = getattr(function, attribute)
        except RuntimeError:  # freed
            attributes[attribute[len(_SAVED) :]] = "[freed]"
            continue
        if isinstance(value, torch.Tensor):
            told = "[saved tensor]"
        elif isinstance(value, tuple) and any(isinstance(t, torch.Tensor) for t in value):
            told = "[saved tensors]"
        else:
            told = str(value)
        attributes[attribute[len(_SAVED) :]] = told
    if not attributes:
        return name
    first = max(map(len, attributes))
    second = min(max(map(len, attributes.values())), max_chars)
    rows = []
    for key, value in attributes.items():
        shown = value if len(value) <= second else value[: second - 3] + "..."
        rows.append(f"{key:<{first}}: {shown:>{second}}")
    return "\n".join([name, "-" * max(first + second + 2, len(name)), *rows])


def _tensors(who: str, var: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    waiting = [var]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, Mapping):
            waiting[:0] = value.values()
        elif isinstance(value, (Sequence, Iterable)) and not isinstance(value, (str, bytes)):
            waiting[:0] = value
        elif value is not None:
            raise TypeError(
                f"{who}: expected tensors, or mappings and sequences of them, got "
                f"{type(value).__name__}"
            )
    if not found:
        raise TypeError(f"{who}: expected at least one tensor, got none")
    return found


def _size(shape: Sequence[int]) -> str:
    return f"({', '.join(str(int(size)) for size in shape)})"
