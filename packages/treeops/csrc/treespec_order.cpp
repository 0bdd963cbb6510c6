// SPDX-License-Identifier: Apache-2.0
#include "treespec_order.h"

#include <algorithm>

#include "errors.h"
#include "stack.h"
#include "state.h"

namespace treeops {

namespace {

// The subtrees of a node, in the order of its children.
using Subtrees = absl::InlinedVector<const Node*, 8>;

Subtrees subtrees_of(const Node& parent) {
    Subtrees subtrees(parent.arity);
    const Node* child = &parent + 1;
    for (std::uint32_t i = 0; i < parent.arity; ++i) {
        subtrees[i] = child;
        child += child->num_nodes;
    }
    return subtrees;
}

bool same_objects(PyObject* left, PyObject* right) {
    if (left == right) return true;
    const Py_ssize_t size = PyTuple_GET_SIZE(left);
    if (PyTuple_GET_SIZE(right) != size) return false;
    for (Py_ssize_t i = 0; i < size; ++i) {
        if (PyTuple_GET_ITEM(left, i) != PyTuple_GET_ITEM(right, i)) return false;
    }
    return true;
}

// Rearranges the subtrees of `other` to the order of the keys of `mapping`; false if the keys are
// not the same.
bool match_keys(const Node& mapping, const Node& other, Subtrees& subtrees) {
    if (mapping.arity != other.arity) return false;
    PyObject* keys = mapping.child_keys();
    PyObject* other_keys = other.child_keys();
    if (same_objects(keys, other_keys)) return true;
    Ref positions = check(PyDict_New());
    for (std::uint32_t i = 0; i < other.arity; ++i) {
        Ref position = check(PyLong_FromUnsignedLong(i));
        check_status(
            PyDict_SetItem(positions.get(), PyTuple_GET_ITEM(other_keys, i), position.get()));
    }
    Subtrees matched(mapping.arity);
    for (std::uint32_t i = 0; i < mapping.arity; ++i) {
        PyObject* position = PyDict_GetItemWithError(positions.get(), PyTuple_GET_ITEM(keys, i));
        if (position == nullptr) {
            if (PyErr_Occurred()) throw PythonError{};
            return false;
        }
        matched[i] = subtrees[PyLong_AsUnsignedLong(position)];
    }
    subtrees = std::move(matched);
    return true;
}

bool equal_metadata(const Node& left, const Node& right) {
    const int equal = PyObject_RichCompareBool(left.metadata(), right.metadata(), Py_EQ);
    check_status(equal);
    return equal == 1;
}

// How two inner nodes fit, the keys of mappings aside.
enum class Fit { kYes, kOtherType, kOtherSize, kOtherMetadata };

Fit fit_of(const Node& first, const Node& second) {
    if (first.is_mapping()) return second.is_mapping() ? Fit::kYes : Fit::kOtherType;
    if (first.kind != second.kind) return Fit::kOtherType;
    const bool has_type = first.kind == NodeKind::kNamedTuple ||
                          first.kind == NodeKind::kStructSequence ||
                          first.kind == NodeKind::kCustom;
    if (has_type && first.subject != second.subject) return Fit::kOtherType;
    if (first.arity != second.arity) return Fit::kOtherSize;
    if (first.kind == NodeKind::kCustom && !equal_metadata(first, second)) {
        return Fit::kOtherMetadata;
    }
    return Fit::kYes;
}

bool is_prefix_at(const StackGuard& stack, const Node* first, const Node* second,
                  bool& leaves_match) {
    if (first->kind == NodeKind::kLeaf) {
        leaves_match = leaves_match && second->kind == NodeKind::kLeaf;
        return true;
    }
    if (first->num_nodes > second->num_nodes || fit_of(*first, *second) != Fit::kYes) return false;
    stack.check();
    Subtrees others = subtrees_of(*second);
    if (first->is_mapping() && !match_keys(*first, *second, others)) return false;
    const Node* child = first + 1;
    for (const Node* other : others) {
        if (!is_prefix_at(stack, child, other, leaves_match)) return false;
        child += child->num_nodes;
    }
    return true;
}

class CommonSuffix {
  public:
    CommonSuffix(State& state, const TreeRole& role, const Node* root)
        : state_(state), role_(role), stack_(root) {}

    // Returns the number of leaves added.
    std::size_t add(const Node* first, const Node* second, const PathStep* step) {
        if (first->kind == NodeKind::kLeaf || second->kind == NodeKind::kLeaf) {
            const Node* whole = first->kind == NodeKind::kLeaf ? second : first;
            nodes_.copy(whole);
            return whole->num_leaves;
        }
        stack_.check();
        const Fit fit = fit_of(*first, *second);
        if (fit != Fit::kYes) raise_mismatch(fit, *first, *second, step);
        Subtrees others = subtrees_of(*second);
        if (first->is_mapping() && !match_keys(*first, *second, others)) {
            raise_keys(*first, *second, step);
        }
        const std::size_t index = nodes_.open_like(*first);
        std::size_t num_leaves = 0;
        const Node* child = first + 1;
        for (std::uint32_t i = 0; i < first->arity; ++i) {
            const PathStep here{step, first, i};
            num_leaves += add(child, others[i], &here);
            child += child->num_nodes;
        }
        nodes_.close(index, num_leaves);
        return num_leaves;
    }
    NodeList& nodes() { return nodes_; }

  private:
    [[noreturn]] void raise_mismatch(Fit fit, const Node& first, const Node& second,
                                     const PathStep* step) const {
        Ref expected = describe_node(state_, first);
        Ref got = describe_node(state_, second);
        if (fit == Fit::kOtherMetadata) {
            got = check(PyUnicode_FromFormat("%U with other metadata", got.get()));
        } else if (PyUnicode_Compare(expected.get(), got.get()) == 0) {
            got = check(PyUnicode_FromString("another type of the same name"));
        }
        raise_difference(role_, step, expected.get(), got.get());
    }
    [[noreturn]] void raise_keys(const Node& first, const Node& second,
                                 const PathStep* step) const {
        Ref expected = describe_node(state_, first);
        Ref got = describe_node(state_, second);
        Ref missing = missing_keys(first.shape()->keys, second.shape()->keys);
        Ref extra = missing_keys(second.shape()->keys, first.shape()->keys);
        Ref text = check(PyUnicode_FromFormat("%U (missing keys %U, extra keys %U)", got.get(),
                                              missing.get(), extra.get()));
        raise_difference(role_, step, expected.get(), text.get());
    }

    State& state_;
    const TreeRole& role_;
    const StackGuard stack_;
    NodeList nodes_;
};

}  // namespace

bool is_prefix(const TreeSpec* first, const TreeSpec* second, bool strict) {
    if (first->none_is_leaf != second->none_is_leaf) return false;
    if (PyUnicode_GET_LENGTH(first->space) != 0 && PyUnicode_GET_LENGTH(second->space) != 0 &&
        PyUnicode_Compare(first->space, second->space) != 0) {
        return false;
    }
    bool leaves_match = true;
    const StackGuard stack(first->nodes);
    return is_prefix_at(stack, first->nodes, second->nodes, leaves_match) &&
           !(strict && leaves_match);
}

Ref broadcast_to_common_suffix(State& state, const TreeRole& role, const TreeSpec* first,
                               const TreeSpec* second) {
    const char* who = role.who;
    if (first->none_is_leaf != second->none_is_leaf) {
        raise(PyExc_ValueError,
              "%s: expected treespecs with the same none_is_leaf, got one with True and one with "
              "False",
              who);
    }
    PyObject* space = joint_space(who, first->space, second->space);
    CommonSuffix suffix(state, role, first->nodes);
    suffix.add(first->nodes, second->nodes, nullptr);
    return make_treespec(state, suffix.nodes(), first->none_is_leaf, space);
}

}  // namespace treeops
