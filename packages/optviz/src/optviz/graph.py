# SPDX-License-Identifier: Apache-2.0
"""An autograd graph as plain data, and what can be asked of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from optviz._identity import key_of
from optviz._nodes import Edge, Node


@dataclass(frozen=True)
class Graph:
    """An autograd graph without a tensor in it; made by :func:`optviz.draw`.

    ``nodes[i].id == i``, and inputs of a node stand before it. ``fold`` and ``show`` say how
    pictures present it.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    fold: bool = True
    show: tuple[str, ...] = ()

    @cached_property
    def _inputs(self) -> tuple[tuple[Edge, ...], ...]:
        return self._grouped("target")

    @cached_property
    def _consumers(self) -> tuple[tuple[Edge, ...], ...]:
        return self._grouped("source")

    def _grouped(self, end: str) -> tuple[tuple[Edge, ...], ...]:
        found: list[list[Edge]] = [[] for _ in self.nodes]
        for edge in self.edges:
            found[getattr(edge, end)].append(edge)
        return tuple(map(tuple, found))

    def node(self, which: str | int | torch.Tensor) -> Node:
        """The node of a tensor, of a name or of an id.

        A tensor is found by what made it (a leaf by itself), so that the loss is the operation
        that computed it. A name is looked for among outputs and leaves, then operations.

        Raises:
            KeyError: No such node, or several operations of that name.

        Example:
            >>> import torch, optviz
            >>> w = torch.ones(2, requires_grad=True)
            >>> optviz.draw((2 * w).sum(), {"w": w}).node("w").shape
            (2,)
        """
        found = self._find(which)
        if found is None:
            known = sorted(node.name for node in self.nodes if node.kind != "op")
            raise KeyError(
                f"Graph.node: expected a node of this graph, got {_told(which)}; {known=}"
            )
        return found

    def _find(self, which: str | int | torch.Tensor | Node) -> Node | None:
        if isinstance(which, Node):
            return which
        if isinstance(which, torch.Tensor):
            return self._by_key.get(key_of(which))
        if isinstance(which, int) and not isinstance(which, bool):
            return self.nodes[which] if 0 <= which < len(self.nodes) else None
        if not isinstance(which, str):
            raise TypeError(
                f"Graph.node: expected a tensor, a name or an id, got {type(which).__name__}"
            )
        named = [node for node in self.nodes if node.kind != "op" and node.name == which]
        named = named or [node for node in self.nodes if which in (node.name, node.label)]
        if len(named) > 1:
            raise KeyError(
                f"Graph.node: expected one node named {which!r}, got {len(named)}; give its id, "
                f"the first is {named[0].id}"
            )
        return named[0] if named else None

    @cached_property
    def _by_key(self) -> dict[Any, Node]:
        return {node.key: node for node in self.nodes if node.key and node.kind != "output"}

    def order(self, which: str | int | torch.Tensor | None = None) -> int:
        """How many derivatives are in a node, or the most that are in any.

        Example:
            >>> import torch, optviz
            >>> w = torch.ones(2, requires_grad=True)
            >>> with optviz.record():
            ...     (g,) = torch.autograd.grad((w**3).sum(), w, create_graph=True)
            >>> optviz.draw(g.sum()).order()
            1
        """
        if which is None:
            return max((node.order for node in self.nodes), default=0)
        return self.node(which).order

    def paths(
        self, source: str | int | torch.Tensor, target: str | int | torch.Tensor, limit: int = 100
    ) -> list[tuple[Node, ...]]:
        """Ways from one node to another, in the order of ids, at most ``limit``.

        Raises:
            KeyError: No such node.
            ValueError: ``limit`` below 1.

        Example:
            >>> import torch, optviz
            >>> w = torch.ones(2, requires_grad=True)
            >>> graph = optviz.draw((w * w.exp()).sum(), {"w": w})
            >>> [" ".join(node.label for node in path) for path in graph.paths("w", "output")]
            ['w Exp Mul Sum output', 'w Mul Sum output']
        """
        if limit < 1:
            raise ValueError(f"Graph.paths: expected limit of at least 1, got {limit}")
        start, end = self.node(source).id, self.node(target).id
        within = self._downstream(start) & self._upstream(end)
        if not within:
            return []
        found: list[tuple[Node, ...]] = []
        way, choices = [start], [self._next(start, within)]
        while way and len(found) < limit:
            if way[-1] == end:
                found.append(tuple(self.nodes[i] for i in way))
                following = None
            else:
                following = next(choices[-1], None)
            if following is None:
                way.pop(), choices.pop()
            else:
                way.append(following)
                choices.append(self._next(following, within))
        return found

    def _next(self, node: int, within: set[int]) -> Iterator[int]:
        targets = {edge.target for edge in self._consumers[node]} & within
        return iter(sorted(targets))

    def _downstream(self, start: int) -> set[int]:
        reached = {start}
        for node in range(start, len(self.nodes)):
            if node in reached:
                reached.update(edge.target for edge in self._consumers[node])
        return reached

    def _upstream(self, end: int) -> set[int]:
        reached = {end}
        for node in range(end, -1, -1):
            if node in reached:
                reached.update(edge.source for edge in self._inputs[node])
        return reached

    def saved_bytes(
        self, by: Literal["scope", "step", "op", "order"] | None = None
    ) -> int | dict[str, int]:
        """Memory that the graph keeps for its backward pass, without that of its leaves.

        What shares a storage is counted once, at the node that came first. Tensors that a hook
        unpacks (checkpoints, offloading) are not counted: ``node.by_hooks`` names them, and
        outlines and pages tell how many there are.

        Args:
            by: None: the sum. ``"scope"``: by the names of all scopes, joined by ``/``;
                ``"step"``: by the outermost scope; ``"op"``; ``"order"``.

        Raises:
            ValueError: ``by`` is none of these.

        Example:
            >>> import torch, optviz
            >>> w = torch.ones(4, requires_grad=True)
            >>> optviz.draw(w.exp().tanh().sum()).saved_bytes(by="op")
            {'Exp': 16, 'Tanh': 16}
        """
        keys = {
            None: lambda node: "",
            "scope": lambda node: "/".join(node.path),
            "step": lambda node: node.path[0] if node.path else "",
            "op": lambda node: node.label,
            "order": lambda node: str(node.order),
        }
        if by not in keys:
            raise ValueError(f"Graph.saved_bytes: expected by in {list(keys)}, got {by!r}")
        counted = {node.storage for node in self.nodes if node.kind == "leaf"}
        found: dict[str, int] = defaultdict(int)
        for node in self.nodes:
            for tensor in node.saved:
                if tensor.storage not in counted:
                    counted.add(tensor.storage)
                    found[keys[by](node)] += tensor.bytes
        return found[""] if by is None else dict(found)

    def why_no_grad(self, param: str | int | torch.Tensor, loss: str | int | torch.Tensor) -> Any:
        """Why ``param`` gets no gradient from ``loss``; falsy if it does.

        See :func:`optviz.why_no_grad`.
        """
        from optviz._why import explain  # it reads graphs

        return explain(self, param, loss)

    def save(self, path: str | Path, engine: Literal["own", "dot"] = "own") -> Path:
        """Write a picture; the suffix says which: ``.svg .html .dot .json .txt``.

        Args:
            path: Where to. Its folder must exist.
            engine: Who lays out an ``.svg``: this package, or Graphviz, whose ``dot`` must be
                installed then.

        Raises:
            ValueError: Another suffix or engine, or ``engine="dot"`` for another format.
            RuntimeError: ``engine="dot"`` without the program.
        """
        path = Path(path)
        kind = path.suffix.lstrip(".").lower()
        if kind not in _WRITERS:
            raise ValueError(
                f"Graph.save: expected a file name ending in {', '.join(_WRITERS)}, got {path.name}"
            )
        if engine not in ("own", "dot"):
            raise ValueError(f"Graph.save: expected engine 'own' or 'dot', got {engine!r}")
        if engine == "dot" and kind != "svg":
            raise ValueError(f"Graph.save: expected a .svg for engine 'dot', got {path.name}")
        if engine == "dot":
            from optviz._dot import rendered

            path.write_text(rendered(self), encoding="utf-8")
        else:
            path.write_text(getattr(self, f"to_{kind}")(), encoding="utf-8")
        return path

    def to_svg(self) -> str:
        """A picture that needs no other program."""
        from optviz._svg import to_svg

        return to_svg(self)

    def to_html(self) -> str:
        """One page to pan, zoom, search and open; it loads nothing from anywhere."""
        from optviz._html import to_html

        return to_html(self)

    def to_dot(self) -> str:
        """Source for Graphviz: what the other pictures show, open boxes as clusters."""
        return self.to_digraph().source

    def to_digraph(self) -> Any:
        """A ``graphviz.Digraph``."""
        from optviz._dot import to_digraph

        return to_digraph(self)

    def to_json(self) -> str:
        """Nodes and edges as JSON."""
        from optviz._text import to_json

        return to_json(self)

    def to_txt(self) -> str:
        """An indented outline for terminals."""
        from optviz._text import to_text

        return to_text(self)

    def summary(self) -> Mapping[str, int]:
        """How many nodes of each kind, edges and bytes saved."""
        kinds = {"ops": "op", "leaves": "leaf", "outputs": "output"}
        counts = {name: sum(n.kind == kind for n in self.nodes) for name, kind in kinds.items()}
        counts["edges"] = len(self.edges)
        counts["saved_bytes"] = self.saved_bytes()
        return counts

    def __repr__(self) -> str:
        return f"Graph({', '.join(f'{k}={v}' for k, v in self.summary().items())})"

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def _repr_html_(self) -> str:
        from optviz._html import to_frame

        return to_frame(self)


_WRITERS = ("svg", "html", "dot", "json", "txt")


def _told(which: Any) -> str:
    if isinstance(which, torch.Tensor):
        return f"a tensor {list(which.shape)} that is not in it"
    return repr(which)
