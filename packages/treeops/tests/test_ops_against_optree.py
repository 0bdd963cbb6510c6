# SPDX-License-Identifier: Apache-2.0
"""OpTree 0.20 as the oracle of everything but the plain walks, which have a file of their own."""

from __future__ import annotations

import time
import warnings
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import optree
import optree.registry
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import treeops

SPACE = "ops oracle"
ORDERED = "ops oracle, dicts in order"
Point = namedtuple("Point", ["x", "y"])


class Box(list):
    """A custom node, everywhere."""

    def __repr__(self) -> str:
        return f"Box({list(self)})"


class Bag(list):
    """A custom node, in the namespace only."""

    def __repr__(self) -> str:
        return f"Bag({list(self)})"


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    optree_global = vars(optree.registry)["__GLOBAL_NAMESPACE"]
    both = ((treeops, treeops.registry.GLOBAL_NAMESPACE), (optree, optree_global))
    for library, everywhere in both:
        library.register_pytree_node(
            Box,
            lambda box: (list(box), len(box), [f"part{i}" for i in range(len(box))]),
            lambda size, children: Box(children),
            path_entry_type=library.GetAttrEntry,
            namespace=everywhere,
        )
        library.register_pytree_node(
            Bag, lambda bag: (iter(bag), None), lambda _, children: Bag(children), namespace=SPACE
        )
    with (
        treeops.dict_insertion_ordered(True, namespace=ORDERED),
        optree.dict_insertion_ordered(True, namespace=ORDERED),
    ):
        yield
    for library, everywhere in both:
        library.unregister_pytree_node(Box, namespace=everywhere)
        library.unregister_pytree_node(Bag, namespace=SPACE)


def shown(value: Any) -> str:
    text = repr(value)
    for name in ("treeops.accessors.", "treeops.", "optree.accessors.", "optree."):
        text = text.replace(name, "")
    return text


def outcome(library: Any, operation: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What comes out, as text: results of both libraries compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # from_collection of a leaf
        try:
            return shown(operation(library, *arguments))
        except (ValueError, TypeError, IndexError) as error:
            return type(error)


def assert_agree(operation: Callable[..., Any], *arguments: Any) -> None:
    assert outcome(treeops, operation, arguments) == outcome(optree, operation, arguments)


KEYS = st.one_of(st.sampled_from("abc"), st.integers(0, 2), st.none())
LEAVES = st.one_of(st.integers(0, 9), st.none())


def nodes(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(children, max_size=3)
    dicts = st.dictionaries(KEYS, children, max_size=3)
    return st.one_of(
        lists,
        lists.map(tuple),
        dicts,
        dicts.map(OrderedDict),
        dicts.map(lambda items: defaultdict(list, items)),
        st.builds(deque, lists, st.sampled_from([None, 4])),
        st.builds(Point, children, children),
        lists.map(Box),
        lists.map(Bag),
    )


TREES = st.recursive(LEAVES, nodes, max_leaves=12)
OPTIONS = st.fixed_dictionaries(
    {"none_is_leaf": st.booleans(), "namespace": st.sampled_from(["", SPACE, ORDERED])}
)


@st.composite
def tree_and_suffix(draw: Callable[..., Any]) -> tuple[Any, Any]:
    """A tree, and the same with some leaves replaced by trees and some mappings reordered."""
    tree = draw(TREES)

    def grow(node: Any) -> Any:
        if isinstance(node, dict):
            cls = draw(st.sampled_from([dict, OrderedDict]))
            return cls((key, grow(node[key])) for key in draw(st.permutations(list(node))))
        if isinstance(node, Point):
            return Point(*map(grow, node))
        if isinstance(node, list | tuple | deque):
            return type(node)(map(grow, node))
        return draw(st.one_of(st.just(node), TREES))

    return tree, grow(tree)


PAIRS = st.one_of(tree_and_suffix(), st.tuples(TREES, TREES))


def structure(library: Any, tree: Any, options: dict[str, Any]) -> Any:
    return library.tree_structure(tree, **options)


ONE_TREE = {
    "accessors": lambda lib, tree, options: lib.tree_accessors(tree, **options),
    "with accessor": lambda lib, tree, options: lib.tree_flatten_with_accessor(tree, **options),
    "map with accessor": lambda lib, tree, options: lib.tree_map_with_accessor(
        lambda accessor, leaf: (accessor, leaf), tree, **options
    ),
    "accessors give leaves": lambda lib, tree, options: [
        accessor(tree)
        for accessor in lib.tree_accessors(tree, **options)
        if not any(isinstance(step, lib.GetAttrEntry) for step in accessor)
        and not any(step.type is Bag for step in accessor)
    ],
    "codify": lambda lib, tree, options: [
        accessor.codify("tree") for accessor in lib.tree_accessors(tree, **options)
    ],
    "iter": lambda lib, tree, options: list(lib.tree_iter(tree, **options)),
    "iter with predicate": lambda lib, tree, options: list(
        lib.tree_iter(tree, lambda node: isinstance(node, tuple), **options)
    ),
    "is_leaf": lambda lib, tree, options: lib.tree_is_leaf(tree, **options),
    "all_leaves": lambda lib, tree, options: lib.all_leaves([1, tree], **options),
    "one level": lambda lib, tree, options: lib.tree_flatten_one_level(tree, **options)[:3],
    "one level, again": lambda lib, tree, options: (
        lambda parts: parts.unflatten_func(parts.metadata, parts.children)
    )(lib.tree_flatten_one_level(tree, **options)),
    "one level, class": lambda lib, tree, options: (
        lambda parts: (parts.type, parts.kind, parts.path_entry_type.__name__)
    )(lib.tree_flatten_one_level(tree, **options)),
    "partition": lambda lib, tree, options: lib.tree_partition(
        lambda leaf: leaf is not None and leaf > 4, tree, **options
    ),
    "replace nones": lambda lib, tree, options: lib.tree_replace_nones(
        0, tree, namespace=options["namespace"]
    ),
    "sum": lambda lib, tree, options: lib.tree_sum(tree, 1, **options),
    "max": lambda lib, tree, options: lib.tree_max(tree, default=-1, **options),
    "min": lambda lib, tree, options: lib.tree_min(tree, key=lambda leaf: -leaf, **options),
    "transpose map": lambda lib, tree, options: lib.tree_transpose_map(
        lambda leaf: {"b": leaf, "a": [leaf]}, tree, **options
    ),
    "transpose map with path": lambda lib, tree, options: lib.tree_transpose_map_with_path(
        lambda path, leaf, other: (path, leaf, other), tree, tree, **options
    ),
    "transpose map with accessor": lambda lib, tree, options: lib.tree_transpose_map_with_accessor(
        lambda accessor, leaf: (accessor, leaf), tree, **options
    ),
    "entries": lambda lib, tree, options: structure(lib, tree, options).entries(),
    "entry": lambda lib, tree, options: structure(lib, tree, options).entry(-1),
    "children": lambda lib, tree, options: structure(lib, tree, options).children(),
    "child": lambda lib, tree, options: structure(lib, tree, options).child(1),
    "one_level": lambda lib, tree, options: structure(lib, tree, options).one_level(),
    "kinds": lambda lib, tree, options: (
        lambda spec: (
            spec.kind,
            spec.is_leaf(),
            spec.is_leaf(strict=False),
            spec.is_one_level(),
            lib.treespec_is_strict_leaf(spec),
        )
    )(structure(lib, tree, options)),
    "traverse": lambda lib, tree, options: structure(lib, tree, options).traverse(
        lib.tree_leaves(tree, **options), lambda node: ("node", node), lambda leaf: [leaf]
    ),
    "walk": lambda lib, tree, options: structure(lib, tree, options).walk(
        lib.tree_leaves(tree, **options), lambda *parts: parts
    ),
    "walk without functions": lambda lib, tree, options: structure(lib, tree, options).walk(
        lib.tree_leaves(tree, **options)
    ),
    "compose": lambda lib, tree, options: structure(lib, tree, options).compose(
        structure(lib, {"x": 1, "a": (2, None)}, options)
    ),
    "transform": lambda lib, tree, options: structure(lib, tree, options).transform(
        lambda node: lib.treespec_tuple(
            [lib.treespec_leaf(none_is_leaf=node.none_is_leaf)] * node.num_children,
            none_is_leaf=node.none_is_leaf,
        ),
        lambda leaf: structure(lib, [1, 2], options),
    ),
    "transform to itself": lambda lib, tree, options: structure(lib, tree, options).transform(
        lambda node: node
    ),
    "from collection": lambda lib, tree, options: lib.treespec_from_collection(
        lib.tree_map(lambda leaf: structure(lib, leaf, options), tree, **options), **options
    ),
    "from leaves": lambda lib, tree, options: lib.treespec_list(
        structure(lib, tree, options).children(), **options
    ),
    "transpose": lambda lib, tree, options: lib.tree_transpose(
        structure(lib, tree, options),
        structure(lib, (1, [2]), options),
        lib.tree_map(lambda leaf: (leaf, [leaf]), tree, **options),
    ),
}


@pytest.mark.parametrize("name", ONE_TREE)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(tree=TREES, options=OPTIONS)
def test_one_tree(name: str, tree: Any, options: dict[str, Any]) -> None:
    assert_agree(ONE_TREE[name], tree, options)


def both(lib: Any, first: Any, second: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    return structure(lib, first, options), structure(lib, second, options)


TWO_TREES = {
    "order": lambda lib, first, second, options: (
        lambda one, two: (one < two, one <= two, one > two, one >= two, one == two)
    )(*both(lib, first, second, options)),
    "is_prefix": lambda lib, first, second, options: (
        lambda one, two: [
            (
                lib.treespec_is_prefix(one, two, strict=strict),
                lib.treespec_is_suffix(one, two, strict=strict),
            )
            for strict in (False, True)
        ]
    )(*both(lib, first, second, options)),
    "common suffix": lambda lib, first, second, options: (
        lambda one, two: one.broadcast_to_common_suffix(two)
    )(*both(lib, first, second, options)),
    "compose": lambda lib, first, second, options: (lambda one, two: one.compose(two))(
        *both(lib, first, second, options)
    ),
    "broadcast_prefix": lambda lib, first, second, options: lib.broadcast_prefix(
        first, second, **options
    ),
    "tree_broadcast_prefix": lambda lib, first, second, options: lib.tree_broadcast_prefix(
        first, second, **options
    ),
    "broadcast_prefix with predicate": lambda lib, first, second, options: lib.broadcast_prefix(
        first, second, lambda node: isinstance(node, tuple), **options
    ),
    "broadcast_common": lambda lib, first, second, options: lib.broadcast_common(
        first, second, **options
    ),
    "tree_broadcast_common": lambda lib, first, second, options: lib.tree_broadcast_common(
        first, second, **options
    ),
    "tree_broadcast_map": lambda lib, first, second, options: lib.tree_broadcast_map(
        lambda *leaves: leaves, second, first, second, **options
    ),
    "tree_broadcast_map_with_path": lambda lib, first, second, options: (
        lib.tree_broadcast_map_with_path(lambda *leaves: leaves, first, second, **options)
    ),
    "tree_broadcast_map_with_accessor": lambda lib, first, second, options: (
        lib.tree_broadcast_map_with_accessor(lambda *leaves: leaves, first, second, **options)
    ),
    "prefix_errors": lambda lib, first, second, options: len(
        lib.prefix_errors(first, second, **options)
    ),
    "tree_transpose": lambda lib, first, second, options: lib.tree_transpose(
        structure(lib, first, options), structure(lib, second, options), [first, second]
    ),
    "tree_transpose_map": lambda lib, first, second, options: lib.tree_transpose_map(
        lambda leaf: second, first, inner_treespec=structure(lib, second, options), **options
    ),
}


@pytest.mark.parametrize("name", TWO_TREES)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(trees=PAIRS, options=OPTIONS)
def test_two_trees(name: str, trees: tuple[Any, Any], options: dict[str, Any]) -> None:
    assert_agree(TWO_TREES[name], *trees, options)


CONSTRUCTORS = {
    "treespec_leaf": lambda lib, **options: lib.treespec_leaf(**options),
    "treespec_none": lambda lib, **options: lib.treespec_none(**options),
    "treespec_tuple": lambda lib, **options: lib.treespec_tuple(**options),
    "treespec_list": lambda lib, **options: lib.treespec_list(
        [lib.treespec_leaf(), lib.treespec_none()], **options
    ),
    "treespec_dict": lambda lib, **options: lib.treespec_dict(
        {"b": lib.treespec_leaf()}, a=lib.treespec_tuple(), **options
    ),
    "treespec_ordereddict": lambda lib, **options: lib.treespec_ordereddict(
        [("b", lib.treespec_leaf()), ("a", lib.treespec_leaf())], **options
    ),
    "treespec_defaultdict": lambda lib, **options: lib.treespec_defaultdict(
        int, {"b": lib.treespec_leaf(), "a": lib.treespec_leaf()}, **options
    ),
    "treespec_deque": lambda lib, **options: lib.treespec_deque(
        [lib.treespec_leaf()], maxlen=3, **options
    ),
    "treespec_namedtuple": lambda lib, **options: lib.treespec_namedtuple(
        Point(lib.treespec_leaf(), lib.treespec_list()), **options
    ),
    "treespec_structseq": lambda lib, **options: lib.treespec_structseq(
        time.struct_time([lib.treespec_leaf()] * 9), **options
    ),
    "of no namedtuple": lambda lib, **options: lib.treespec_namedtuple(
        (lib.treespec_leaf(),), **options
    ),
    "of no structseq": lambda lib, **options: lib.treespec_structseq(
        (lib.treespec_leaf(),), **options
    ),
    "of no treespec": lambda lib, **options: lib.treespec_list([1], **options),
    "custom": lambda lib, **options: lib.treespec_from_collection(
        Bag([lib.treespec_leaf()]), **options
    ),
    "of a treespec": lambda lib, **options: lib.treespec_from_collection(
        lib.treespec_leaf(), **options
    ),
    "of two namespaces": lambda lib, **options: lib.treespec_list(
        [lib.tree_structure(Bag([1]), namespace=SPACE)], **options
    ),
}


@pytest.mark.parametrize("namespace", ["", SPACE, ORDERED, "unknown"])
@pytest.mark.parametrize("none_is_leaf", [False, True])
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructor(name: str, none_is_leaf: bool, namespace: str) -> None:
    def make(library: Any) -> Any:
        return CONSTRUCTORS[name](library, none_is_leaf=none_is_leaf, namespace=namespace)

    assert_agree(make)


@pytest.mark.parametrize("kind", list(optree.PyTreeKind))
def test_kinds_have_the_same_numbers(kind: Any) -> None:
    assert treeops.PyTreeKind[kind.name] == kind.value


def test_short_names() -> None:
    import optree.treespec

    import treeops.treespec

    assert sorted(treeops.treespec.__all__) == sorted(optree.treespec.__all__)
    leaf = treeops.treespec.leaf()
    assert repr(treeops.treespec.dict(b=leaf, a=leaf)) == "PyTreeSpec({'a': *, 'b': *})"
