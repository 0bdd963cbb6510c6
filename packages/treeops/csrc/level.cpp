// SPDX-License-Identifier: Apache-2.0
#include "level.h"

#include "errors.h"
#include "state.h"

namespace treeops {

namespace {

NodeKind kind_of(State& state, Namespace& space, PyObject* object, bool none_is_leaf,
                 Registration*& registration) {
    if (object == Py_None) return none_is_leaf ? NodeKind::kLeaf : NodeKind::kNone;
    const KindEntry& entry = resolve_kind(state, space, Py_TYPE(object));
    registration = entry.registration;
    return entry.kind;
}

void push_items(PyObject* tuple, References& children) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) {
        children.push_borrowed(PyTuple_GET_ITEM(tuple, i));
    }
}

// The keys of a mapping, in the order of its iteration, and the shape they make.
Ref shape_of(State& state, PyObject* mapping, bool sorted) {
    Ref keys =
        check(PyODict_CheckExact(mapping) ? PySequence_Tuple(mapping) : PyDict_Keys(mapping));
    PyObject* const* items = PySequence_Fast_ITEMS(keys.get());
    const auto size = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(keys.get()));
    std::uint64_t hash = ShapeTable::start(size);
    for (std::size_t i = 0; i < size; ++i) hash = ShapeTable::mix(hash, items[i]);
    return state.shapes.find_or_make(state, items, size, hash, sorted);
}

void open_mapping(State& state, const char* who, PyObject* mapping, NodeKind kind, bool in_order,
                  Level& level, References& children) {
    const bool sorted = kind != NodeKind::kOrderedDict && !in_order;
    Ref factory = kind == NodeKind::kDefaultDict
                      ? check(PyObject_GetAttr(mapping, state.name_default_factory.get()))
                      : Ref();
    Ref shape = shape_of(state, mapping, sorted);
    const auto arity = static_cast<std::size_t>(reinterpret_cast<KeyShape*>(shape.get())->size());
    const std::size_t index = level.node.open(kind, arity, std::move(shape), std::move(factory));
    level.node[index].in_order = in_order && kind != NodeKind::kOrderedDict;
    PyObject* keys = level.node[index].child_keys();
    for (std::size_t i = 0; i < arity; ++i) {
        PyObject* value =
            PyDict_GetItemWithError(mapping, PyTuple_GET_ITEM(keys, static_cast<Py_ssize_t>(i)));
        if (value == nullptr) {
            if (PyErr_Occurred()) throw PythonError{};
            raise(PyExc_RuntimeError,
                  "%s: expected the tree to stay as it is while it is walked, got a mapping that "
                  "changed; do not change containers in comparisons of keys",
                  who);
        }
        children.push_borrowed(value);
    }
}

void open_custom(const char* who, PyObject* object, Registration* registration, Level& level,
                 References& children) {
    Ref held = Ref::borrow(reinterpret_cast<PyObject*>(registration));
    CustomChildren parts = flatten_custom(who, registration, object);
    const bool has_entries = static_cast<bool>(parts.entries);
    Ref extra = has_entries ? check(PyTuple_Pack(2, parts.metadata.get(), parts.entries.get()))
                            : std::move(parts.metadata);
    const auto arity = static_cast<std::size_t>(PyTuple_GET_SIZE(parts.children.get()));
    const std::size_t index =
        level.node.open(NodeKind::kCustom, arity, std::move(held), std::move(extra));
    level.node[index].has_entries = has_entries;
    level.found_custom = true;
    push_items(parts.children.get(), children);
}

}  // namespace

bool open_level(State& state, const char* who, PyObject* object, const FlattenOptions& options,
                Level& level, References& children) {
    Namespace& space = state.registry.lookup(options.space);
    Registration* registration = nullptr;
    const NodeKind kind = kind_of(state, space, object, options.none_is_leaf, registration);
    switch (kind) {
        case NodeKind::kLeaf:
            return false;
        case NodeKind::kNone:
            level.node.open(kind, 0);
            return true;
        case NodeKind::kTuple:
            level.node.open(kind, static_cast<std::size_t>(PyTuple_GET_SIZE(object)));
            push_items(object, children);
            return true;
        case NodeKind::kNamedTuple:
        case NodeKind::kStructSequence:
            level.node.open(kind, static_cast<std::size_t>(PyTuple_GET_SIZE(object)),
                            Ref::borrow(reinterpret_cast<PyObject*>(Py_TYPE(object))));
            push_items(object, children);
            return true;
        case NodeKind::kList: {
            Ref items = check(PyList_AsTuple(object));
            level.node.open(kind, static_cast<std::size_t>(PyTuple_GET_SIZE(items.get())));
            push_items(items.get(), children);
            return true;
        }
        case NodeKind::kDeque: {
            Ref maxlen = check(PyObject_GetAttr(object, state.name_maxlen.get()));
            Ref items = check(PySequence_Tuple(object));
            level.node.open(kind, static_cast<std::size_t>(PyTuple_GET_SIZE(items.get())), Ref(),
                            std::move(maxlen));
            push_items(items.get(), children);
            return true;
        }
        case NodeKind::kDict:
        case NodeKind::kOrderedDict:
        case NodeKind::kDefaultDict:
            if (kind != NodeKind::kOrderedDict && state.registry.names_order(space)) {
                level.found_custom = true;
            }
            open_mapping(state, who, object, kind, state.registry.keeps_order(space), level,
                         children);
            return true;
        case NodeKind::kCustom:
            open_custom(who, object, registration, level, children);
            return true;
    }
    TREEOPS_CHECK(false);
}

bool is_leaf_object(State& state, PyObject* object, const FlattenOptions& options) {
    if (options.is_leaf != nullptr) {
        Ref answer = check(PyObject_CallOneArg(options.is_leaf, object));
        const int truth = PyObject_IsTrue(answer.get());
        check_status(truth);
        if (truth != 0) return true;
    }
    Registration* registration = nullptr;
    return kind_of(state, state.registry.lookup(options.space), object, options.none_is_leaf,
                   registration) == NodeKind::kLeaf;
}

}  // namespace treeops
