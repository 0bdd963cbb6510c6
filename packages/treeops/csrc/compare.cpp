// SPDX-License-Identifier: Apache-2.0
// Equality, order and hash of treespecs.
#include "treespec_order.h"

namespace treeops {

namespace {

bool equal_objects(PyObject* left, PyObject* right) {
    if (left == right) return true;
    const int equal = PyObject_RichCompareBool(left, right, Py_EQ);
    check_status(equal);
    return equal == 1;
}

bool equal_nodes(const Node& left, const Node& right) {
    if (left.kind != right.kind || left.arity != right.arity || left.num_nodes != right.num_nodes ||
        left.num_leaves != right.num_leaves) {
        return false;
    }
    switch (left.kind) {
        case NodeKind::kDict:
        case NodeKind::kOrderedDict:
        case NodeKind::kDefaultDict:
            return ((left.subject == right.subject && left.in_order == right.in_order) ||
                    equal_objects(left.child_keys(), right.child_keys())) &&
                   (left.extra == nullptr || equal_objects(left.extra, right.extra));
        case NodeKind::kDeque:
            return equal_objects(left.extra, right.extra);
        case NodeKind::kNamedTuple:
        case NodeKind::kStructSequence:
            return left.subject == right.subject;
        case NodeKind::kCustom:
            return left.subject == right.subject &&
                   equal_objects(left.metadata(), right.metadata());
        default:
            return true;
    }
}

bool equal_treespecs(const TreeSpec* left, const TreeSpec* right) {
    if (left == right) return true;
    if (Py_SIZE(left) != Py_SIZE(right) || left->none_is_leaf != right->none_is_leaf) return false;
    if (PyUnicode_GET_LENGTH(left->space) != 0 && PyUnicode_GET_LENGTH(right->space) != 0 &&
        !equal_objects(left->space, right->space)) {
        return false;
    }
    for (Py_ssize_t i = 0; i < Py_SIZE(left); ++i) {
        if (!equal_nodes(left->nodes[i], right->nodes[i])) return false;
    }
    return true;
}

void mix_hash(Py_uhash_t& hash, std::uint64_t value) {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
}

void mix_hash_of(Py_uhash_t& hash, PyObject* object) {
    const Py_hash_t value = PyObject_Hash(object);
    if (value == -1) throw PythonError{};
    mix_hash(hash, static_cast<std::uint64_t>(value));
}

void mix_metadata_hash(Py_uhash_t& hash, const Node& node) {
    // Metadata may hold treespecs that hold treespecs: hashing, unlike comparing, counts no levels.
    if (Py_EnterRecursiveCall(" while hashing a treespec") != 0) throw PythonError{};
    const Py_hash_t value = PyObject_Hash(node.metadata());
    Py_LeaveRecursiveCall();
    if (value == -1) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw PythonError{};
        PyErr_Clear();
        raise(PyExc_TypeError,
              "PyTreeSpec.__hash__: expected hashable metadata of custom node %S, got %S; return "
              "hashable metadata from its flatten function",
              type_name(node.registration()->type).get(), describe_object(node.metadata()).get());
    }
    mix_hash(hash, static_cast<std::uint64_t>(value));
}

Py_hash_t hash_treespec(const TreeSpec* self) {
    Py_uhash_t hash = self->none_is_leaf ? 0x7F4A7C15u : 0x9E3779B9u;
    for (Py_ssize_t i = 0; i < Py_SIZE(self); ++i) {
        const Node& node = self->nodes[i];
        mix_hash(hash, static_cast<std::uint64_t>(node.kind) << 32 | node.arity);
        switch (node.kind) {
            case NodeKind::kDict:
            case NodeKind::kOrderedDict:
                mix_hash_of(hash, node.child_keys());
                break;
            case NodeKind::kDefaultDict:
                mix_hash_of(hash, node.child_keys());
                mix_hash_of(hash, node.extra);
                break;
            case NodeKind::kDeque:
                mix_hash_of(hash, node.extra);
                break;
            case NodeKind::kNamedTuple:
            case NodeKind::kStructSequence:
                mix_hash(hash, reinterpret_cast<std::uintptr_t>(node.subject) >> 4);
                break;
            case NodeKind::kCustom:
                mix_hash(hash, reinterpret_cast<std::uintptr_t>(node.subject) >> 4);
                mix_metadata_hash(hash, node);
                break;
            default:
                break;
        }
    }
    return static_cast<Py_hash_t>(hash) == -1 ? -2 : static_cast<Py_hash_t>(hash);
}

}  // namespace

PyObject* treespec_richcompare(PyObject* self, PyObject* other, int operation) {
    if (!Py_IS_TYPE(other, Py_TYPE(self))) Py_RETURN_NOTIMPLEMENTED;
    return guarded<PyObject*>(nullptr, [&] {
        const TreeSpec* left = as_treespec(self);
        const TreeSpec* right = as_treespec(other);
        if (operation == Py_LT || operation == Py_LE) {
            return PyBool_FromLong(is_prefix(left, right, operation == Py_LT));
        }
        if (operation == Py_GT || operation == Py_GE) {
            return PyBool_FromLong(is_prefix(right, left, operation == Py_GT));
        }
        const bool equal = equal_treespecs(left, right);
        return PyBool_FromLong(equal == (operation == Py_EQ));
    });
}

Py_hash_t treespec_hash(PyObject* self) {
    TreeSpec* spec = as_treespec(self);
    if (spec->hash == -1) {
        spec->hash = guarded<Py_hash_t>(-1, [&] { return hash_treespec(spec); });
    }
    return spec->hash;
}

}  // namespace treeops
