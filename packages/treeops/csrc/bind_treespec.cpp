// SPDX-License-Identifier: Apache-2.0
// The methods of PyTreeSpec, and the functions that make treespecs without a tree.
#include "accessors.h"
#include "errors.h"
#include "flatten_up_to.h"
#include "module.h"
#include "paths.h"
#include "pickle.h"
#include "state.h"
#include "traverse.h"
#include "treespec_build.h"
#include "treespec_order.h"
#include "unflatten.h"

namespace treeops {

namespace {

Ref list_of(std::size_t size) { return check(PyList_New(static_cast<Py_ssize_t>(size))); }

// A function argument that may be None: NULL then.
PyObject* optional_callable(const char* who, const char* name, PyObject* value) {
    if (value == Py_None) return nullptr;
    if (!PyCallable_Check(value)) {
        raise(PyExc_TypeError, "%s: expected %s to be callable or None, got %S", who, name,
              describe_object(value).get());
    }
    return value;
}

TreeSpec* other_treespec(State& state, const char* who, const char* name, PyObject* object) {
    if (!is_treespec(state, object)) {
        raise(PyExc_TypeError, "%s: expected %s to be a PyTreeSpec, got %S", who, name,
              describe_object(object).get());
    }
    return as_treespec(object);
}

// The number of a child, counted from the end if negative.
std::uint32_t child_index(const char* who, const Node& node, PyObject* object) {
    Ref number;
    if (!PyIndex_Check(object) && !PyFloat_Check(object) && Py_TYPE(object)->tp_as_number &&
        Py_TYPE(object)->tp_as_number->nb_int) {
        number = check(PyNumber_Long(object));
        object = number.get();
    }
    if (!PyIndex_Check(object)) {
        raise(PyExc_TypeError, "%s: expected index to be an int, got %S", who,
              describe_object(object).get());
    }
    number = check(PyNumber_Index(object));
    const auto arity = static_cast<Py_ssize_t>(node.arity);
    const Py_ssize_t index = PyLong_AsSsize_t(number.get());
    if (index == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        raise(PyExc_IndexError, "%s: expected an index of one of %zd children, got one far outside",
              who, arity);
    }
    if (index < -arity || index >= arity) {
        raise(PyExc_IndexError, "%s: expected an index of one of %zd children, got %zd", who, arity,
              index);
    }
    return static_cast<std::uint32_t>(index < 0 ? index + arity : index);
}

PyObject* treespec_unflatten(PyObject* self, PyObject* leaves) {
    return guarded<PyObject*>(nullptr, [&] {
        return unflatten_iterable(state_of_instance(self), "PyTreeSpec.unflatten", self, leaves)
            .release();
    });
}

PyObject* treespec_flatten_up_to(PyObject* self, PyObject* tree) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref held = Ref::borrow(self);
        Flattened found;
        const TreeRole role{"PyTreeSpec.flatten_up_to", 0, "tree", "the treespec"};
        flatten_up_to(state_of_instance(self), role, as_treespec(self)->nodes, tree, found.leaves);
        return take_leaves(found).release();
    });
}

PyObject* treespec_paths(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr,
                              [&] { return leaf_paths(as_treespec(self)->nodes).release(); });
}

PyObject* treespec_accessors(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref held = Ref::borrow(self);
        return leaf_accessors(state_of_instance(self), as_treespec(self)->nodes).release();
    });
}

PyObject* treespec_entries(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        const Node& root = as_treespec(self)->root();
        Ref entries = list_of(root.arity);
        for (std::uint32_t i = 0; i < root.arity; ++i) {
            PyList_SET_ITEM(entries.get(), i, child_entry(root, i).release());
        }
        return entries.release();
    });
}

PyObject* treespec_entry(PyObject* self, PyObject* index) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref held = Ref::borrow(self);
        const Node& root = as_treespec(self)->root();
        return child_entry(root, child_index("PyTreeSpec.entry", root, index)).release();
    });
}

PyObject* treespec_children(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        State& state = state_of_instance(self);
        const TreeSpec* spec = as_treespec(self);
        Ref children = list_of(0);
        const Node* child = spec->nodes + 1;
        for (std::uint32_t i = 0; i < spec->root().arity; ++i, child += child->num_nodes) {
            Ref subtree = make_subtree(state, child, spec->none_is_leaf, spec->space);
            check_status(PyList_Append(children.get(), subtree.get()));
        }
        return children.release();
    });
}

PyObject* treespec_child(PyObject* self, PyObject* index) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref held = Ref::borrow(self);
        const TreeSpec* spec = as_treespec(self);
        const std::uint32_t position = child_index("PyTreeSpec.child", spec->root(), index);
        const Node* child = spec->nodes + 1;
        for (std::uint32_t i = 0; i < position; ++i) child += child->num_nodes;
        return make_subtree(state_of_instance(self), child, spec->none_is_leaf, spec->space)
            .release();
    });
}

PyObject* treespec_one_level(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref level = one_level_treespec(state_of_instance(self), as_treespec(self));
        return level ? level.release() : new_reference(Py_None);
    });
}

PyObject* treespec_is_one_level(PyObject* self, PyObject*) {
    const Node& root = as_treespec(self)->root();
    return PyBool_FromLong(root.kind != NodeKind::kLeaf && root.is_one_level());
}

PyObject* treespec_is_leaf(PyObject* self, PyObject* arguments, PyObject* keywords) {
    static const char* names[] = {"strict", nullptr};
    int strict = 1;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "|$p:PyTreeSpec.is_leaf",
                                     const_cast<char**>(names), &strict)) {
        return nullptr;
    }
    const Node& root = as_treespec(self)->root();
    return PyBool_FromLong(root.num_nodes == 1 && (root.num_leaves == 1 || !strict));
}

// is_prefix and is_suffix: `who` is which.
PyObject* compare_treespecs(PyObject* self, PyObject* arguments, PyObject* keywords,
                            const char* who, const char* format, bool reversed) {
    static const char* names[] = {"", "strict", nullptr};
    PyObject* other;
    int strict = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, format, const_cast<char**>(names), &other,
                                     &strict)) {
        return nullptr;
    }
    return guarded<PyObject*>(nullptr, [&] {
        const TreeSpec* first = as_treespec(self);
        const TreeSpec* second = other_treespec(state_of_instance(self), who, "other", other);
        if (reversed) std::swap(first, second);
        return PyBool_FromLong(is_prefix(first, second, strict != 0));
    });
}

PyObject* treespec_is_prefix(PyObject* self, PyObject* arguments, PyObject* keywords) {
    return compare_treespecs(self, arguments, keywords, "PyTreeSpec.is_prefix",
                             "O|$p:PyTreeSpec.is_prefix", false);
}

PyObject* treespec_is_suffix(PyObject* self, PyObject* arguments, PyObject* keywords) {
    return compare_treespecs(self, arguments, keywords, "PyTreeSpec.is_suffix",
                             "O|$p:PyTreeSpec.is_suffix", true);
}

PyObject* treespec_broadcast_to_common_suffix(PyObject* self, PyObject* other) {
    return guarded<PyObject*>(nullptr, [&] {
        State& state = state_of_instance(self);
        const TreeRole role{"PyTreeSpec.broadcast_to_common_suffix", 0, "other", "self"};
        const TreeSpec* second = other_treespec(state, role.who, "other", other);
        return broadcast_to_common_suffix(state, role, as_treespec(self), second).release();
    });
}

PyObject* treespec_compose(PyObject* self, PyObject* inner) {
    return guarded<PyObject*>(nullptr, [&] {
        State& state = state_of_instance(self);
        const TreeSpec* second = other_treespec(state, "PyTreeSpec.compose", "inner", inner);
        return compose_treespecs(state, as_treespec(self), second).release();
    });
}

PyObject* treespec_transform(PyObject* self, PyObject* arguments, PyObject* keywords) {
    static const char* names[] = {"f_node", "f_leaf", nullptr};
    PyObject* node_func = Py_None;
    PyObject* leaf_func = Py_None;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "|OO:PyTreeSpec.transform",
                                     const_cast<char**>(names), &node_func, &leaf_func)) {
        return nullptr;
    }
    return guarded<PyObject*>(nullptr, [&] {
        const char* who = "PyTreeSpec.transform";
        Ref held = Ref::borrow(self);
        return transform_treespec(state_of_instance(self), as_treespec(self),
                                  optional_callable(who, "f_node", node_func),
                                  optional_callable(who, "f_leaf", leaf_func))
            .release();
    });
}

PyObject* run_traverse(PyObject* self, PyObject* arguments, PyObject* keywords, const char* who,
                       const char* format, NodeCall call) {
    static const char* names[] = {"", "f_node", "f_leaf", nullptr};
    PyObject* iterable;
    PyObject* node_func = Py_None;
    PyObject* leaf_func = Py_None;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, format, const_cast<char**>(names),
                                     &iterable, &node_func, &leaf_func)) {
        return nullptr;
    }
    return guarded<PyObject*>(nullptr, [&] {
        Ref held = Ref::borrow(self);
        const TreeSpec* spec = as_treespec(self);
        PyObject* on_node = optional_callable(who, "f_node", node_func);
        PyObject* on_leaf = optional_callable(who, "f_leaf", leaf_func);
        References leaves;
        gather_leaves(who, iterable, spec->root().num_leaves, leaves);
        return traverse(state_of_instance(self), spec->nodes, leaves.data(), call, on_node, on_leaf)
            .release();
    });
}

PyObject* treespec_traverse_method(PyObject* self, PyObject* arguments, PyObject* keywords) {
    return run_traverse(self, arguments, keywords, "PyTreeSpec.traverse",
                        "O|OO:PyTreeSpec.traverse", NodeCall::kContainer);
}

PyObject* treespec_walk(PyObject* self, PyObject* arguments, PyObject* keywords) {
    return run_traverse(self, arguments, keywords, "PyTreeSpec.walk", "O|OO:PyTreeSpec.walk",
                        NodeCall::kParts);
}

PyObject* treespec_reduce(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref payload = dump_treespec(as_treespec(self));
        State& state = state_of_instance(self);
        return check(PyTuple_Pack(2, state.rebuild_treespec.get(), payload.get())).release();
    });
}

// ---- functions -----------------------------------------------------------------------------

PyObject* make_leaf(PyObject* module, PyObject* none_is_leaf) {
    return guarded<PyObject*>(nullptr, [&] {
        const int flag = PyObject_IsTrue(none_is_leaf);
        check_status(flag);
        return make_leaf_treespec(state_of_module(module), flag != 0).release();
    });
}

PyObject* make_none(PyObject* module, PyObject* none_is_leaf) {
    return guarded<PyObject*>(nullptr, [&] {
        const int flag = PyObject_IsTrue(none_is_leaf);
        check_status(flag);
        return make_none_treespec(state_of_module(module), flag != 0).release();
    });
}

PyObject* make_from_collection(PyObject* module, PyObject* arguments) {
    const char* who;
    PyObject *collection, *space;
    int none_is_leaf;
    if (!PyArg_ParseTuple(arguments, "sOpU:make_from_collection", &who, &collection, &none_is_leaf,
                          &space)) {
        return nullptr;
    }
    return guarded<PyObject*>(nullptr, [&] {
        const FlattenOptions options{nullptr, none_is_leaf != 0, space};
        return treespec_from_collection(state_of_module(module), who, collection, options)
            .release();
    });
}

// flatten_up_to of a treespec for each of several trees, which errors number.
PyObject* flatten_each_up_to(PyObject* module, PyObject* arguments) {
    TreeRole role{};
    PyObject *treespec, *trees;
    if (!PyArg_ParseTuple(arguments, "sOOsis:flatten_each_up_to", &role.who, &treespec, &trees,
                          &role.what, &role.number, &role.whole)) {
        return nullptr;
    }
    return guarded<PyObject*>(nullptr, [&] {
        State& state = state_of_module(module);
        const TreeSpec* spec = other_treespec(state, role.who, "treespec", treespec);
        Ref items = check(PySequence_Tuple(trees));
        Ref rows = list_of(0);
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items.get()); ++i, ++role.number) {
            Flattened found;
            flatten_up_to(state, role, spec->nodes, PyTuple_GET_ITEM(items.get(), i), found.leaves);
            check_status(PyList_Append(rows.get(), take_leaves(found).get()));
        }
        return rows.release();
    });
}

// What broadcast_to_common_suffix makes of the treespecs of all arguments.
PyObject* common_suffix(PyObject* module, PyObject* arguments) {
    const char* who;
    PyObject* treespecs;
    if (!PyArg_ParseTuple(arguments, "sO:common_suffix", &who, &treespecs)) return nullptr;
    return guarded<PyObject*>(nullptr, [&] {
        State& state = state_of_module(module);
        Ref items = check(PySequence_Tuple(treespecs));
        Ref common;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items.get()); ++i) {
            PyObject* item = PyTuple_GET_ITEM(items.get(), i);
            const TreeSpec* spec = other_treespec(state, who, "treespec", item);
            const TreeRole role{who, static_cast<int>(i) + 1, "argument",
                                i == 1 ? "argument 1" : "the arguments before it"};
            common = common ? broadcast_to_common_suffix(state, role, as_treespec(common.get()), spec)
                            : Ref::borrow(item);
        }
        TREEOPS_CHECK(common);
        return common.release();
    });
}

template <typename Function>
PyCFunction as_method(Function function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

constexpr int kKeywords = METH_VARARGS | METH_KEYWORDS;

}  // namespace

PyMethodDef treespec_methods[] = {
    {"unflatten", treespec_unflatten, METH_O,
     "unflatten($self, leaves, /)\n--\n\nThe tree of this structure with these leaves."},
    {"flatten_up_to", treespec_flatten_up_to, METH_O,
     "flatten_up_to($self, tree, /)\n--\n\n"
     "What stands in a tree at the leaves of this structure, which must be its prefix.\n\n"
     "Example:\n"
     "    >>> tree_structure([0, 0]).flatten_up_to([1, {'a': 2}])\n"
     "    [1, {'a': 2}]"},
    {"paths", treespec_paths, METH_NOARGS,
     "paths($self, /)\n--\n\nThe path of each leaf, a tuple of keys and positions."},
    {"accessors", treespec_accessors, METH_NOARGS,
     "accessors($self, /)\n--\n\nThe accessor of each leaf, a PyTreeAccessor."},
    {"entries", treespec_entries, METH_NOARGS,
     "entries($self, /)\n--\n\nThe key or position of each child of the root."},
    {"entry", treespec_entry, METH_O,
     "entry($self, index, /)\n--\n\nThe key or position of one child of the root.\n\n"
     "Raises:\n"
     "    IndexError: The root has fewer children."},
    {"children", treespec_children, METH_NOARGS,
     "children($self, /)\n--\n\nThe treespec of each child of the root.\n\n"
     "Example:\n"
     "    >>> tree_structure([1, (2, 3)]).children()\n"
     "    [PyTreeSpec(*), PyTreeSpec((*, *))]"},
    {"child", treespec_child, METH_O,
     "child($self, index, /)\n--\n\nThe treespec of one child of the root.\n\n"
     "Raises:\n"
     "    IndexError: The root has fewer children."},
    {"one_level", treespec_one_level, METH_NOARGS,
     "one_level($self, /)\n--\n\nThe root with leaves for children; None for a leaf.\n\n"
     "Example:\n"
     "    >>> tree_structure([1, (2, 3)]).one_level()\n"
     "    PyTreeSpec([*, *])"},
    {"is_leaf", as_method(treespec_is_leaf), kKeywords,
     "is_leaf($self, /, *, strict=True)\n--\n\n"
     "Whether this is the structure of a leaf; if not `strict`, of anything without children."},
    {"is_one_level", treespec_is_one_level, METH_NOARGS,
     "is_one_level($self, /)\n--\n\nWhether this is a node whose children are all leaves."},
    {"is_prefix", as_method(treespec_is_prefix), kKeywords,
     "is_prefix($self, other, /, *, strict=False)\n--\n\n"
     "Whether `other` is this structure with subtrees in the place of leaves; if `strict`, with\n"
     "one at least. The order and the class of mappings make no difference. As ``self <= other``\n"
     "and ``self < other``.\n\n"
     "Example:\n"
     "    >>> tree_structure([1, 2]).is_prefix(tree_structure([1, (2, 3)]))\n"
     "    True"},
    {"is_suffix", as_method(treespec_is_suffix), kKeywords,
     "is_suffix($self, other, /, *, strict=False)\n--\n\n"
     "Whether `other` is a prefix of this structure; see is_prefix."},
    {"broadcast_to_common_suffix", treespec_broadcast_to_common_suffix, METH_O,
     "broadcast_to_common_suffix($self, other, /)\n--\n\n"
     "The smallest structure that this one and `other` are prefixes of.\n\n"
     "Raises:\n"
     "    ValueError: There is none; the message has the path of the difference.\n\n"
     "Example:\n"
     "    >>> tree_structure([1, (2, 3)]).broadcast_to_common_suffix(tree_structure([[4], 5]))\n"
     "    PyTreeSpec([[*], (*, *)])"},
    {"compose", treespec_compose, METH_O,
     "compose($self, inner, /)\n--\n\nThis structure with `inner` in the place of every leaf.\n\n"
     "Example:\n"
     "    >>> tree_structure([1, 2]).compose(tree_structure((3, 4)))\n"
     "    PyTreeSpec([(*, *), (*, *)])"},
    {"transform", as_method(treespec_transform), kKeywords,
     "transform($self, /, f_node=None, f_leaf=None)\n--\n\n"
     "This structure with every node and leaf replaced.\n\n"
     "Args:\n"
     "    f_node: From a node with leaves for children to another one with as many.\n"
     "    f_leaf: From a leaf to any treespec.\n\n"
     "Example:\n"
     "    >>> tree_structure([1, [2]]).transform(lambda node: treespec_tuple(node.children()))\n"
     "    PyTreeSpec((*, (*,)))"},
    {"traverse", as_method(treespec_traverse_method), kKeywords,
     "traverse($self, leaves, /, f_node=None, f_leaf=None)\n--\n\n"
     "Like unflatten, but every leaf becomes ``f_leaf(leaf)`` and every container, filled with\n"
     "what its children became, ``f_node(container)``.\n\n"
     "Example:\n"
     "    >>> tree_structure([1, [2, 3]]).traverse([1, 2, 3], sum)\n"
     "    6"},
    {"walk", as_method(treespec_walk), kKeywords,
     "walk($self, leaves, /, f_node=None, f_leaf=None)\n--\n\n"
     "Like traverse, with ``f_node(type, metadata, children)``; `children` is a tuple."},
    {"__reduce__", treespec_reduce, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyMethodDef treespec_functions[] = {
    {"make_leaf", make_leaf, METH_O, "The treespec of a leaf, from none_is_leaf."},
    {"make_none", make_none, METH_O, "The treespec of None, from none_is_leaf."},
    {"make_from_collection", make_from_collection, METH_VARARGS,
     "The treespec of a container of treespecs, from (who, container, none_is_leaf, namespace)."},
    {"flatten_each_up_to", flatten_each_up_to, METH_VARARGS,
     "flatten_up_to for each of several trees, from (who, treespec, trees, what they are, number "
     "of the first, what they differ from)."},
    {"common_suffix", common_suffix, METH_VARARGS,
     "The common suffix of the treespecs of all arguments, from (who, treespecs)."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace treeops
