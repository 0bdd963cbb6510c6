// SPDX-License-Identifier: Apache-2.0
#include "flatten_up_to.h"

#include "flatten.h"
#include "stack.h"
#include "state.h"

namespace treeops {

namespace {

class PrefixWalker {
  public:
    PrefixWalker(State& state, const TreeRole& role, const Node* root, References& subtrees)
        : state_(state), stack_(root), role_(role), node_(root), subtrees_(subtrees) {}

    // `object` is kept alive by the caller.
    void visit(PyObject* object, const PathStep* step);

  private:
    void visit_child(const Node& parent, std::uint32_t i, PyObject* object, const PathStep* step) {
        if (node_->kind == NodeKind::kLeaf) {
            subtrees_.push_borrowed(object);
            ++node_;
            return;
        }
        Ref held = Ref::borrow(object);
        const PathStep here{step, &parent, i};
        visit(object, &here);
    }

    [[noreturn]] void raise_mismatch(const PathStep* step, Ref expected, Ref got) const {
        raise_difference(role_, step, expected.get(), got.get());
    }

    [[noreturn]] void raise_mismatch(const PathStep* step, const Node& node,
                                     PyObject* object) const {
        Ref expected = describe_node(state_, node);
        Ref got = describe_object(object);
        if (PyUnicode_Compare(expected.get(), got.get()) == 0) {
            expected = check(PyUnicode_FromFormat("%U", expected.get()));
            got = check(PyUnicode_FromString("another type of the same name"));
        }
        raise_mismatch(step, std::move(expected), std::move(got));
    }

    void visit_sequence(const Node& node, PyObject* object, const PathStep* step);
    void visit_mapping(const Node& node, PyObject* object, const PathStep* step);
    void visit_custom(const Node& node, PyObject* object, const PathStep* step);
    void collect_values(const Node& node, PyObject* object, const PathStep* step,
                        References& values);
    [[noreturn]] void raise_keys(const Node& node, PyObject* object, const PathStep* step) const;

    State& state_;
    const StackGuard stack_;
    const TreeRole& role_;
    const Node* node_;
    References& subtrees_;
    References values_;  // of the mappings on the way down
};

void PrefixWalker::visit(PyObject* object, const PathStep* step) {
    stack_.check();
    const Node& node = *node_++;
    switch (node.kind) {
        case NodeKind::kLeaf:
            subtrees_.push_borrowed(object);
            return;
        case NodeKind::kNone:
            if (object != Py_None) raise_mismatch(step, node, object);
            return;
        case NodeKind::kDict:
        case NodeKind::kOrderedDict:
        case NodeKind::kDefaultDict:
            return visit_mapping(node, object, step);
        case NodeKind::kCustom:
            return visit_custom(node, object, step);
        default:
            return visit_sequence(node, object, step);
    }
}

void PrefixWalker::visit_sequence(const Node& node, PyObject* object, const PathStep* step) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != node_type(state_, node)) {
        raise_mismatch(step, node, object);
    }
    const Py_ssize_t size = node.arity;
    if (node.kind == NodeKind::kList) {
        if (PyList_GET_SIZE(object) != size) raise_mismatch(step, node, object);
        for (Py_ssize_t i = 0; i < size; ++i) {
            if (PyList_GET_SIZE(object) != size) {
                raise(PyExc_RuntimeError,
                      "%s: expected the tree to stay as it is while it is walked, got a list that "
                      "changed size; do not change containers in a flatten function",
                      role_.who);
            }
            visit_child(node, static_cast<std::uint32_t>(i), PyList_GET_ITEM(object, i), step);
        }
        return;
    }
    Ref items =
        node.kind == NodeKind::kDeque ? check(PySequence_Tuple(object)) : Ref::borrow(object);
    if (PyTuple_GET_SIZE(items.get()) != size) {
        Ref name = type_name(Py_TYPE(object));
        raise_mismatch(
            step, describe_node(state_, node),
            check(PyUnicode_FromFormat("%S of %zd", name.get(), PyTuple_GET_SIZE(items.get()))));
    }
    for (Py_ssize_t i = 0; i < size; ++i) {
        visit_child(node, static_cast<std::uint32_t>(i), PyTuple_GET_ITEM(items.get(), i), step);
    }
}

void PrefixWalker::raise_keys(const Node& node, PyObject* object, const PathStep* step) const {
    Ref expected = describe_node(state_, node);
    Ref got = describe_object(object);
    Ref missing = missing_keys(node.shape()->keys, object);
    Ref extra = missing_keys(object, node.shape()->keys);
    raise_mismatch(step, std::move(expected),
                   check(PyUnicode_FromFormat("%U (missing keys %U, extra keys %U)", got.get(),
                                              missing.get(), extra.get())));
}

// Pushes the values in the order of the node's children.
void PrefixWalker::collect_values(const Node& node, PyObject* object, const PathStep* step,
                                  References& values) {
    const KeyShape* shape = node.shape();
    const std::size_t base = values.size();
    values.grow_null(node.arity);
    // The very key objects of the treespec in the same places: no lookup.
    const std::uint32_t* rank = node.is_sorted() ? shape->rank : nullptr;
    PyObject* const* keys = shape->key_data();
    Py_ssize_t position = 0;
    PyObject *key, *value;
    std::uint32_t same = 0;
    while (same < node.arity && PyDict_Next(object, &position, &key, &value) && key == keys[same]) {
        values[base + (rank == nullptr ? same : rank[same])] = new_reference(value);
        ++same;
    }
    if (same == node.arity) return;
    for (std::uint32_t i = 0; i < node.arity; ++i) {
        const std::size_t index = base + (rank == nullptr ? i : rank[i]);
        if (values[index] != nullptr) continue;
        value = PyDict_GetItemWithError(object, keys[i]);
        if (value == nullptr) {
            if (PyErr_Occurred()) throw PythonError{};
            raise_keys(node, object, step);
        }
        values[index] = new_reference(value);
    }
}

void PrefixWalker::visit_mapping(const Node& node, PyObject* object, const PathStep* step) {
    PyTypeObject* type = Py_TYPE(object);
    if (type != &PyDict_Type && type != &PyODict_Type &&
        type != reinterpret_cast<PyTypeObject*>(state_.defaultdict_type.get())) {
        raise_mismatch(step, node, object);
    }
    if (PyDict_GET_SIZE(object) != static_cast<Py_ssize_t>(node.arity)) {
        raise_keys(node, object, step);
    }
    if (node.is_one_level()) {
        collect_values(node, object, step, subtrees_);
        node_ += node.arity;
        return;
    }
    const std::size_t base = values_.size();
    collect_values(node, object, step, values_);
    for (std::uint32_t i = 0; i < node.arity; ++i) {
        if (node_->kind == NodeKind::kLeaf) {
            subtrees_.push_stolen(Ref::steal(std::exchange(values_[base + i], nullptr)));
            ++node_;
        } else {
            const PathStep here{step, &node, i};
            visit(values_[base + i], &here);
        }
    }
    values_.truncate(base);
}

void PrefixWalker::visit_custom(const Node& node, PyObject* object, const PathStep* step) {
    Registration* registration = node.registration();
    if (Py_TYPE(object) != registration->type) raise_mismatch(step, node, object);
    CustomChildren parts = flatten_custom(role_.who, registration, object);
    const int equal = PyObject_RichCompareBool(node.metadata(), parts.metadata.get(), Py_EQ);
    check_status(equal);
    const Py_ssize_t size = PyTuple_GET_SIZE(parts.children.get());
    if (size != static_cast<Py_ssize_t>(node.arity) || equal == 0) {
        Ref name = type_name(registration->type);
        Ref got = equal == 0 ? check(PyUnicode_FromFormat("%S with other metadata", name.get()))
                             : check(PyUnicode_FromFormat("%S of %zd", name.get(), size));
        raise_mismatch(step, describe_node(state_, node), std::move(got));
    }
    for (Py_ssize_t i = 0; i < size; ++i) {
        visit_child(node, static_cast<std::uint32_t>(i), PyTuple_GET_ITEM(parts.children.get(), i),
                    step);
    }
}

}  // namespace

void flatten_up_to(State& state, const TreeRole& role, const Node* root, PyObject* tree,
                   References& subtrees) {
    subtrees.reserve(subtrees.size() + root->num_leaves);
    PrefixWalker(state, role, root, subtrees).visit(tree, nullptr);
}

}  // namespace treeops
