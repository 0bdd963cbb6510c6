# SPDX-License-Identifier: Apache-2.0
"""Keys, classes and cycles that come and go, and trees that change while they are walked."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import pytest

import treeops

SPACE = "safety"


class Leaf:
    pass


def test_equal_keys_that_are_other_objects() -> None:
    for size in (1, 2, 6, 30, 1500):
        names = [f"name{i}" for i in range(size)]
        first = {"".join(name): i for i, name in enumerate(names)}
        second = {"".join(list(name)): i for i, name in enumerate(reversed(names))}
        spec = treeops.tree_structure(first)
        assert spec == treeops.tree_structure(second)
        assert spec.flatten_up_to(second) == [second[name] for name in sorted(names)]
        assert list(treeops.tree_map(str, second)) == list(second)


def test_keys_that_collide_in_the_table() -> None:
    trees = [dict.fromkeys(range(i, i + 3), i) for i in range(4000)]
    for _ in range(2):
        for i, tree in enumerate(trees):
            assert treeops.tree_paths(tree) == [(i,), (i + 1,), (i + 2,)]
            assert treeops.tree_map(lambda leaf: leaf, tree) == tree


def test_equal_keys_of_other_types_are_told_apart() -> None:
    for key in (1, True, 1.0):
        tree = {key: None, "a": 0}
        paths = treeops.tree_paths(tree, none_is_leaf=True)
        assert {type(path[0]) for path in paths} == {type(key), str}


def test_classes_can_die_and_their_addresses_come_back() -> None:
    for i in range(600):
        bases = (namedtuple("Made", ["x"]),) if i % 2 else (object,)
        made = type("Made", bases, {})
        tree = made(*[1] * (i % 2))
        assert len(treeops.tree_leaves([tree])) == 1
        assert (treeops.tree_leaves([tree]) == [1]) is bool(i % 2)
        reference = weakref.ref(made)
        del made, tree, bases
        gc.collect(0)
    gc.collect()
    assert reference() is None


def test_treespecs_do_not_keep_leaves() -> None:
    leaf = Leaf()
    reference = weakref.ref(leaf)
    spec = treeops.tree_structure({"a": [leaf]})
    del leaf
    assert reference() is None
    assert spec.num_leaves == 1


def test_cycles_through_metadata_are_collected() -> None:
    class Holder:
        pass

    treeops.register_pytree_node(
        Holder,
        lambda holder: ((), holder),
        lambda holder, children: holder,
        namespace=SPACE,
    )

    def make_cycle() -> weakref.ref[Any]:
        holder = Holder()
        holder.spec = treeops.tree_structure(holder, namespace=SPACE)
        holder.factory = treeops.tree_structure(defaultdict(lambda: holder, a=1))
        return weakref.ref(holder)

    reference = make_cycle()
    gc.collect()
    assert reference() is None
    treeops.unregister_pytree_node(Holder, namespace=SPACE)


def test_cycles_through_a_class_are_collected() -> None:
    made = namedtuple("Made", ["x"])
    made.spec = treeops.tree_structure(made(1))
    reference = weakref.ref(made)
    del made
    gc.collect()
    assert reference() is None


def changing(change: Callable[[], Any], at: int) -> Callable[[Any], bool]:
    calls = itertools.count()

    def predicate(node: Any) -> bool:
        if next(calls) == at:
            change()
        return False

    return predicate


@pytest.mark.parametrize("at", range(1, 4))
@pytest.mark.parametrize("change", ["clear", "append"])
def test_a_list_that_changes_while_it_is_walked(change: str, at: int) -> None:
    tree: list[Any] = [[Leaf()], [Leaf()], [Leaf()], [Leaf()]]
    act = {"clear": tree.clear, "append": lambda: tree.append(1)}[change]
    message = (
        "^tree_leaves: expected the tree to stay as it is while it is flattened, got a list that "
        "changed size; do not change containers in is_leaf or a flatten function$"
    )
    with pytest.raises(RuntimeError, match=message):
        treeops.tree_leaves(tree, changing(act, at))


@pytest.mark.parametrize("make", [dict, OrderedDict, lambda items: defaultdict(list, items)])
def test_a_mapping_that_changes_is_walked_as_it_was(make: Any) -> None:
    tree = make([(str(i), [Leaf(), i]) for i in range(8)])
    leaves = treeops.tree_leaves(tree, changing(tree.clear, 2))
    assert leaves[1::2] == list(range(8))


def test_a_deque_that_changes_is_walked_as_it_was() -> None:
    tree = deque([[Leaf(), i] for i in range(8)])
    assert treeops.tree_leaves(tree, changing(tree.clear, 2))[1::2] == list(range(8))


def test_a_list_that_a_flatten_function_changes_under_a_map() -> None:
    class Spoiler:
        pass

    other: list[Any] = [Spoiler(), [Leaf()], [Leaf()]]
    spoilers = [lambda: None, other.clear]
    treeops.register_pytree_node(
        Spoiler,
        lambda spoiler: ((), spoilers.pop(0)()),
        lambda metadata, children: Spoiler(),
        namespace=SPACE,
    )
    message = "^tree_map: expected the tree to stay as it is while it is walked, got a list that"
    spec_like = [Spoiler(), [1], [2]]
    with pytest.raises(RuntimeError, match=message):
        treeops.tree_map(lambda *leaves: leaves, spec_like, other, namespace=SPACE)
    treeops.unregister_pytree_node(Spoiler, namespace=SPACE)


def test_leaves_that_change_while_the_tree_is_built() -> None:
    leaves: list[Any] = []
    made: list[Any] = []

    class Greedy:
        pass

    treeops.register_pytree_node(
        Greedy,
        lambda greedy: ((1, 2), None),
        lambda metadata, children: made.append(leaves.clear()),
        namespace=SPACE,
    )
    treespec = treeops.tree_structure([Greedy(), {"a": 1}, 2], namespace=SPACE)
    leaves.extend(Leaf() for _ in range(4))
    kept = leaves[2:]
    assert treespec.unflatten(leaves) == [None, {"a": kept[0]}, kept[1]]
    treeops.unregister_pytree_node(Greedy, namespace=SPACE)


def test_a_type_unregistered_while_it_is_walked() -> None:
    class Leaving:
        pass

    def flatten(leaving: Leaving) -> Any:
        treeops.unregister_pytree_node(Leaving, namespace=SPACE)
        return [1, 2], "metadata"

    treeops.register_pytree_node(Leaving, flatten, lambda *parts: parts, namespace=SPACE)
    first, second = Leaving(), Leaving()
    result = treeops.tree_map(str, [first, second, None], namespace=SPACE)
    assert result == [("metadata", ("1", "2")), str(second), None]


def test_keys_that_run_code() -> None:
    tree: dict[Any, Any] = {}

    class Key:
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def __lt__(self, other: Key) -> bool:
            tree.clear()
            return self.rank < other.rank

    for rank in (3, 1, 2, 5, 4):
        tree[Key(rank)] = [rank]
    leaves, treespec = treeops.tree_flatten(tree)
    assert leaves == [1, 2, 3, 4, 5]
    assert list(treespec.unflatten(leaves).values()) == [[3], [1], [2], [5], [4]]


def test_keys_that_cannot_be_compared_for_a_reason() -> None:
    class Key:
        def __lt__(self, other: Key) -> bool:
            raise LookupError("no order")

    with pytest.raises(LookupError, match="no order"):
        treeops.tree_leaves({Key(): 1, Key(): 2})


def test_a_changed_namedtuple_constructor_is_called() -> None:
    made = namedtuple("Made", ["x", "y"])
    spec = treeops.tree_structure(made(1, 2))
    assert spec.unflatten([3, 4]) == made(3, 4)
    original = made.__new__

    def swapped(cls: Any, x: Any, y: Any) -> Any:
        return original(cls, y, x)

    made.__new__ = swapped
    assert tuple(spec.unflatten([3, 4])) == (4, 3)
    made.__new__ = original
    assert tuple(spec.unflatten([3, 4])) == (3, 4)
    made.__init__ = lambda self, *fields: calls.append(fields)
    calls: list[Any] = []
    spec.unflatten([5, 6])
    assert calls == [(5, 6)]


def test_an_ordered_dict_that_was_damaged() -> None:
    tree = OrderedDict([("a", 1), ("b", 2), ("c", 3)])
    dict.__delitem__(tree, "a")
    with pytest.raises((RuntimeError, KeyError)):
        treeops.tree_leaves(tree)


def test_classes_with_hostile_metaclasses() -> None:
    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            if name == "_fields":
                raise LookupError("hostile")
            return super().__getattribute__(name)

    class Hostile(tuple, metaclass=Meta):
        pass

    with pytest.raises(LookupError, match="hostile"):
        treeops.tree_leaves([Hostile()])


def test_classes_whose_names_are_no_strings() -> None:
    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            if name in ("__qualname__", "__module__"):
                return 12345
            return super().__getattribute__(name)

    class Nameless(metaclass=Meta):
        pass

    for tree in ([1], (1,), {"a": 1}, [[1]]):
        with pytest.raises(ValueError, match="got Nameless"):
            treeops.tree_map(lambda *leaves: leaves, tree, Nameless())


def test_results_are_whole_when_the_collector_runs() -> None:
    tree = [[object(), {"a": object()}] for _ in range(2000)]
    treespec = treeops.tree_structure(tree)

    def read_all(phase: str, info: dict[str, int]) -> None:
        for container in gc.get_objects(generation=0):
            if type(container) in (list, tuple):
                for item in container:
                    type(item)

    threshold = gc.get_threshold()
    gc.callbacks.append(read_all)
    gc.set_threshold(50)
    try:
        assert len(treespec.paths()) == len(treespec.accessors()) == treespec.num_leaves
        assert treeops.tree_unflatten(treespec, range(treespec.num_leaves))[0][0] == 0
        assert treespec.__reduce__()[1][1] is False
    finally:
        gc.callbacks.remove(read_all)
        gc.set_threshold(*threshold)
