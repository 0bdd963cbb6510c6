// SPDX-License-Identifier: Apache-2.0
#include "unflatten.h"

#include <cstring>

#include "stack.h"
#include "state.h"

namespace treeops {

namespace {

constexpr Py_ssize_t kFewestToCopy = 6;  // up to five items, an empty dict does not grow

// PyTuple_New and PyList_New, filled with new references before any code can run.
Ref make_tuple(PyTypeObject* type, PyObject* const* values, Py_ssize_t size) {
    Ref tuple = check(type == &PyTuple_Type ? PyTuple_New(size) : type->tp_alloc(type, size));
    for (Py_ssize_t i = 0; i < size; ++i) {
        PyTuple_SET_ITEM(tuple.get(), i, new_reference(values[i]));
    }
    return tuple;
}

Ref make_list(PyObject* const* values, Py_ssize_t size) {
    Ref list = check(PyList_New(size));
    for (Py_ssize_t i = 0; i < size; ++i) {
        PyList_SET_ITEM(list.get(), i, new_reference(values[i]));
    }
    return list;
}

// Sets the items in the order the mapping had, not in the sorted order of the children.
template <typename SetItem>
void fill_mapping(const Node& node, PyObject* mapping, PyObject* const* values, SetItem set_item) {
    const KeyShape* shape = node.shape();
    const std::uint32_t* rank = node.is_sorted() ? shape->rank : nullptr;
    PyObject* const* keys = shape->key_data();
    for (std::uint32_t i = 0; i < node.arity; ++i) {
        check_status(set_item(mapping, keys[i], values[rank == nullptr ? i : rank[i]]));
    }
}

class Unflattener {
  public:
    Unflattener(State& state, const Node* root, PyObject* const* leaves)
        : state_(state), stack_(root), node_(root), leaf_(leaves) {}

    Ref build() {
        const Node& self = *node_++;
        if (self.kind == NodeKind::kLeaf) return Ref::borrow(*leaf_++);
        if (self.is_one_level()) {
            PyObject* const* values = leaf_;
            leaf_ += self.arity;
            node_ += self.arity;
            return unflatten_node(state_, self, values);
        }
        stack_.check();
        if (self.arity == 1) {  // as below, without the stack of values
            const Ref child = build();
            PyObject* value = child.get();
            return unflatten_node(state_, self, &value);
        }
        const std::size_t base = values_.size();
        for (std::uint32_t i = 0; i < self.arity; ++i) {
            if (node_->kind == NodeKind::kLeaf) {
                values_.push_borrowed(*leaf_++);
                ++node_;
            } else {
                values_.push_stolen(build());
            }
        }
        Ref made = unflatten_node(state_, self, values_.data() + base);
        values_.truncate(base);
        return made;
    }

  private:
    State& state_;
    const StackGuard stack_;
    const Node* node_;
    PyObject* const* leaf_;
    References values_;  // finished children on the way down
};

}  // namespace

Ref unflatten_node(State& state, const Node& node, PyObject* const* values) {
    const Py_ssize_t size = node.arity;
    switch (node.kind) {
        case NodeKind::kNone:
            return Ref::borrow(Py_None);
        case NodeKind::kTuple:
            return make_tuple(&PyTuple_Type, values, size);
        case NodeKind::kList:
            return make_list(values, size);
        case NodeKind::kDict: {
            // A copy of a dict with the same keys needs no growth, and its insertions no search for
            // a free place: cheaper than starting from an empty one.
            Ref dict =
                check(size < kFewestToCopy ? PyDict_New() : PyDict_Copy(blank_of(node.shape())));
            fill_mapping(node, dict.get(), values, PyDict_SetItem);
            return dict;
        }
        case NodeKind::kOrderedDict: {
            // As PyODict_New, without its call of __init__, which does nothing to an empty one.
            Ref dict = check(PyODict_Type.tp_new(&PyODict_Type, state.empty_tuple.get(), nullptr));
            fill_mapping(node, dict.get(), values, PyODict_SetItem);
            return dict;
        }
        case NodeKind::kDefaultDict: {
            Ref dict = check(PyObject_CallOneArg(state.defaultdict_type.get(), node.extra));
            fill_mapping(node, dict.get(), values, PyDict_SetItem);
            return dict;
        }
        case NodeKind::kDeque: {
            Ref items = make_list(values, size);
            return check(PyObject_CallFunctionObjArgs(state.deque_type.get(), items.get(),
                                                      node.extra, nullptr));
        }
        case NodeKind::kNamedTuple:
            if (namedtuple_fills(state, node.type())) {
                return make_tuple(node.type(), values, size);
            }
            return check(PyObject_Vectorcall(node.subject, values, size, nullptr));
        case NodeKind::kStructSequence: {
            Ref items = make_tuple(&PyTuple_Type, values, size);
            return check(PyObject_CallOneArg(node.subject, items.get()));
        }
        case NodeKind::kCustom: {
            Ref items = make_tuple(&PyTuple_Type, values, size);
            Ref function = Ref::borrow(node.registration()->unflatten_func);
            return check(PyObject_CallFunctionObjArgs(function.get(), node.metadata(), items.get(),
                                                      nullptr));
        }
        case NodeKind::kLeaf:
            break;
    }
    TREEOPS_CHECK(false);
}

Ref unflatten(State& state, const Node* root, PyObject* const* leaves) {
    return Unflattener(state, root, leaves).build();
}

Ref unflatten_iterable(State& state, const char* who, PyObject* treespec, PyObject* iterable) {
    const TreeSpec* spec = as_treespec(treespec);
    Ref held = Ref::borrow(treespec);
    if (PyTuple_CheckExact(iterable) &&
        PyTuple_GET_SIZE(iterable) == static_cast<Py_ssize_t>(spec->root().num_leaves)) {
        Ref items = Ref::borrow(iterable);  // a tuple stays as it is: no copy
        return unflatten(state, spec->nodes, reinterpret_cast<PyTupleObject*>(iterable)->ob_item);
    }
    References leaves;
    gather_leaves(who, iterable, spec->root().num_leaves, leaves);
    return unflatten(state, spec->nodes, leaves.data());
}

void gather_leaves(const char* who, PyObject* iterable, std::size_t expected, References& leaves) {
    leaves.reserve(expected);
    if (PyTuple_CheckExact(iterable) || PyList_CheckExact(iterable)) {
        const auto size = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(iterable));
        if (size != expected) {
            raise(PyExc_ValueError, "%s: expected %zu leaves, got %zu", who, expected, size);
        }
        PyObject** items = PySequence_Fast_ITEMS(iterable);
        for (std::size_t i = 0; i < size; ++i) leaves.push_borrowed(items[i]);
        return;
    }
    if (Py_TYPE(iterable)->tp_iter == nullptr && !PySequence_Check(iterable)) {
        raise(PyExc_TypeError, "%s: expected leaves to be iterable, got %S", who,
              describe_object(iterable).get());
    }
    Ref iterator = check(PyObject_GetIter(iterable));
    while (PyObject* leaf = PyIter_Next(iterator.get())) {
        leaves.push_stolen(Ref::steal(leaf));
        if (leaves.size() > expected) {
            raise(PyExc_ValueError, "%s: expected %zu leaves, got more", who, expected);
        }
    }
    if (PyErr_Occurred()) throw PythonError{};
    if (leaves.size() != expected) {
        raise(PyExc_ValueError, "%s: expected %zu leaves, got %zu", who, expected, leaves.size());
    }
}

}  // namespace treeops
