// SPDX-License-Identifier: Apache-2.0
#include "treespec.h"

#include <structmember.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

#include "accessors.h"
#include "module.h"
#include "state.h"

namespace treeops {

namespace {

void drop_references(Node& node) {
    Py_CLEAR(node.subject);
    Py_CLEAR(node.extra);
}

// ---- life of the object --------------------------------------------------------------------

PyObject* treespec_new(PyTypeObject*, PyObject*, PyObject*) {
    PyErr_SetString(PyExc_TypeError,
                    "PyTreeSpec.__new__: expected a tree to take the structure of, got a direct "
                    "call; call treeops.tree_structure(tree)");
    return nullptr;
}

int treespec_traverse(PyObject* self, visitproc visit, void* arg) {
    TreeSpec* spec = as_treespec(self);
    Py_VISIT(Py_TYPE(self));
    for (Py_ssize_t i = 0; i < Py_SIZE(spec); ++i) {
        Py_VISIT(spec->nodes[i].subject);
        Py_VISIT(spec->nodes[i].extra);
    }
    return 0;
}

// Breaks cycles through metadata and factories; what is left is still a valid treespec, since a
// finalizer may reach it.
int treespec_clear(PyObject* self) {
    TreeSpec* spec = as_treespec(self);
    for (Py_ssize_t i = 0; i < Py_SIZE(spec); ++i) {
        Node& node = spec->nodes[i];
        if (node.extra == nullptr) continue;
        PyObject* old = std::exchange(node.extra, new_reference(Py_None));
        node.has_entries = false;
        Py_DECREF(old);
    }
    return 0;
}

void treespec_dealloc(PyObject* self) {
    TreeSpec* spec = as_treespec(self);
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, treespec_dealloc) if (spec->weak_references != nullptr)
        PyObject_ClearWeakRefs(self);
    for (Py_ssize_t i = 0; i < Py_SIZE(spec); ++i) drop_references(spec->nodes[i]);
    Py_XDECREF(spec->space);
    PyObject_GC_Del(self);
    Py_DECREF(type);
    Py_TRASHCAN_END
}

// ---- attributes ----------------------------------------------------------------------------

PyObject* get_num_leaves(PyObject* self, void*) {
    return PyLong_FromUnsignedLong(as_treespec(self)->root().num_leaves);
}
PyObject* get_num_nodes(PyObject* self, void*) {
    return PyLong_FromUnsignedLong(as_treespec(self)->root().num_nodes);
}
PyObject* get_num_children(PyObject* self, void*) {
    return PyLong_FromUnsignedLong(as_treespec(self)->root().arity);
}
PyObject* get_none_is_leaf(PyObject* self, void*) {
    return PyBool_FromLong(as_treespec(self)->none_is_leaf);
}
PyObject* get_namespace(PyObject* self, void*) { return new_reference(as_treespec(self)->space); }
PyObject* get_type(PyObject* self, void*) {
    return new_reference(node_type(state_of_instance(self), as_treespec(self)->root()));
}
PyObject* get_kind(PyObject* self, void*) {
    return guarded<PyObject*>(nullptr, [&] {
        return new_reference(kind_object(state_of_instance(self), as_treespec(self)->root().kind));
    });
}
Py_ssize_t treespec_length(PyObject* self) { return as_treespec(self)->root().num_leaves; }

PyGetSetDef treespec_attributes[] = {
    {"num_leaves", get_num_leaves, nullptr, "Number of leaves.", nullptr},
    {"num_nodes", get_num_nodes, nullptr, "Number of nodes, leaves included.", nullptr},
    {"num_children", get_num_children, nullptr, "Number of children of the root.", nullptr},
    {"none_is_leaf", get_none_is_leaf, nullptr, "Whether None was taken as a leaf.", nullptr},
    {"namespace", get_namespace, nullptr,
     "Namespace of the custom nodes; '' if there are none or all are global.", nullptr},
    {"kind", get_kind, nullptr, "Kind of the root, a PyTreeKind.", nullptr},
    {"type", get_type, nullptr, "Type of the root; None for a leaf.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyMemberDef treespec_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(TreeSpec, weak_references), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

constexpr const char* kTreeSpecDoc =
    "The structure of a tree: what is left when the leaves are taken out.\n\n"
    "Immutable and hashable; equal structures compare equal. Made by tree_flatten and "
    "tree_structure.";

PyType_Slot treespec_slots[] = {
    {Py_tp_doc, const_cast<char*>(kTreeSpecDoc)},
    {Py_tp_new, reinterpret_cast<void*>(treespec_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(treespec_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(treespec_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(treespec_clear)},
    {Py_tp_richcompare, reinterpret_cast<void*>(treespec_richcompare)},
    {Py_tp_hash, reinterpret_cast<void*>(treespec_hash)},
    {Py_tp_repr, reinterpret_cast<void*>(treespec_repr)},
    {Py_sq_length, reinterpret_cast<void*>(treespec_length)},
    {Py_tp_methods, treespec_methods},
    {Py_tp_getset, treespec_attributes},
    {Py_tp_members, treespec_members},
    {0, nullptr},
};

}  // namespace

PyType_Spec treespec_spec = {
    "treeops.PyTreeSpec", static_cast<int>(offsetof(TreeSpec, nodes)),
    sizeof(Node),         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    treespec_slots,
};

NodeList::~NodeList() {
    for (Node& node : nodes_) drop_references(node);
}

std::size_t NodeList::open(NodeKind kind, std::size_t arity, Ref subject, Ref extra) {
    const std::size_t index = nodes_.size();
    if (arity >= std::numeric_limits<std::uint32_t>::max() - index) {
        raise(PyExc_OverflowError, "PyTreeSpec: expected fewer than 2**32 nodes, got more");
    }
    make_room();
    nodes_.push_back(Node{kind, false, false, static_cast<std::uint32_t>(arity), 0, 1,
                          subject.get(), extra.get()});
    subject.release();
    extra.release();
    return index;
}

void NodeList::close(std::size_t index, std::size_t num_leaves) {
    const std::size_t num_nodes = nodes_.size() - index;
    if (nodes_.size() >= std::numeric_limits<std::uint32_t>::max()) {
        raise(PyExc_OverflowError, "PyTreeSpec: expected fewer than 2**32 nodes, got more");
    }
    nodes_[index].num_leaves = static_cast<std::uint32_t>(num_leaves);
    nodes_[index].num_nodes = static_cast<std::uint32_t>(num_nodes);
}

std::size_t NodeList::open_like(const Node& node) {
    const std::size_t index =
        open(node.kind, node.arity, Ref::borrow(node.subject), Ref::borrow(node.extra));
    nodes_[index].has_entries = node.has_entries;
    nodes_[index].in_order = node.in_order;
    return index;
}

void NodeList::replace(std::size_t index, const Node& node) {
    Node& place = nodes_[index];
    TREEOPS_CHECK(place.arity == node.arity);
    Ref old_subject = Ref::steal(std::exchange(place.subject, node.subject));
    Ref old_extra = Ref::steal(std::exchange(place.extra, node.extra));
    Py_XINCREF(node.subject);
    Py_XINCREF(node.extra);
    place.kind = node.kind;
    place.has_entries = node.has_entries;
    place.in_order = node.in_order;
}

void NodeList::copy(const Node* root) {
    const std::size_t size = nodes_.size();
    if (root->num_nodes >= std::numeric_limits<std::uint32_t>::max() - size) {
        raise(PyExc_OverflowError, "PyTreeSpec: expected fewer than 2**32 nodes, got more");
    }
    if (size + root->num_nodes > nodes_.capacity()) {
        nodes_.reserve(std::max(size + root->num_nodes, 2 * nodes_.capacity()));
    }
    for (std::uint32_t i = 0; i < root->num_nodes; ++i) {
        nodes_.push_back(root[i]);
        Py_XINCREF(root[i].subject);
        Py_XINCREF(root[i].extra);
    }
}

Ref make_subtree(State& state, const Node* root, bool none_is_leaf, PyObject* space) {
    NodeList nodes;
    nodes.copy(root);
    return make_treespec(state, nodes, none_is_leaf, space);
}

bool is_treespec(State& state, PyObject* object) {
    return Py_IS_TYPE(object, reinterpret_cast<PyTypeObject*>(state.treespec_type.get()));
}

PyObject* joint_space(const char* who, PyObject* first, PyObject* second) {
    if (PyUnicode_GET_LENGTH(second) == 0) return first;
    if (PyUnicode_GET_LENGTH(first) == 0) return second;
    if (PyUnicode_Compare(first, second) != 0) {
        raise(PyExc_ValueError, "%s: expected treespecs of one namespace, got %R and %R", who,
              first, second);
    }
    return first;
}

void check_node_depth(const char* who, const NodeList& nodes) {
    std::vector<std::size_t> ends;  // of the inner nodes around the current one
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        while (!ends.empty() && ends.back() <= i) ends.pop_back();
        if (ends.size() > static_cast<std::size_t>(kMaxRecursionDepth)) {
            raise(PyExc_RecursionError, "%s: expected a treespec at most %d deep, got a deeper one",
                  who, kMaxRecursionDepth);
        }
        if (nodes.data()[i].arity > 0) ends.push_back(i + nodes.data()[i].num_nodes);
    }
}

Ref make_treespec(State& state, NodeList& nodes, bool none_is_leaf, PyObject* space) {
    const std::size_t size = nodes.size();
    TREEOPS_CHECK(size > 0 && nodes[0].num_nodes == size);
    auto* type = reinterpret_cast<PyTypeObject*>(state.treespec_type.get());
    auto* spec = PyObject_GC_NewVar(TreeSpec, type, static_cast<Py_ssize_t>(size));
    Ref owner = check(reinterpret_cast<PyObject*>(spec));
    spec->weak_references = nullptr;
    spec->space = new_reference(space);
    spec->hash = -1;
    spec->none_is_leaf = none_is_leaf;
    std::copy_n(nodes.data(), size, spec->nodes);
    nodes.disown();
    PyObject_GC_Track(owner.get());
    return owner;
}

PyObject* node_type(State& state, const Node& node) {
    switch (node.kind) {
        case NodeKind::kLeaf:
            return Py_None;
        case NodeKind::kNone:
            return reinterpret_cast<PyObject*>(Py_TYPE(Py_None));
        case NodeKind::kTuple:
            return reinterpret_cast<PyObject*>(&PyTuple_Type);
        case NodeKind::kList:
            return reinterpret_cast<PyObject*>(&PyList_Type);
        case NodeKind::kDict:
            return reinterpret_cast<PyObject*>(&PyDict_Type);
        case NodeKind::kOrderedDict:
            return reinterpret_cast<PyObject*>(&PyODict_Type);
        case NodeKind::kDefaultDict:
            return state.defaultdict_type.get();
        case NodeKind::kDeque:
            return state.deque_type.get();
        case NodeKind::kNamedTuple:
        case NodeKind::kStructSequence:
            return node.subject;
        case NodeKind::kCustom:
            return reinterpret_cast<PyObject*>(node.registration()->type);
    }
    Py_UNREACHABLE();
}

Ref describe_node(State& state, const Node& node) {
    if (node.kind == NodeKind::kNone) return check(PyUnicode_FromString("None"));
    Ref name = type_name(reinterpret_cast<PyTypeObject*>(node_type(state, node)));
    return check(
        PyUnicode_FromFormat("%S of %zd", name.get(), static_cast<Py_ssize_t>(node.arity)));
}

}  // namespace treeops
