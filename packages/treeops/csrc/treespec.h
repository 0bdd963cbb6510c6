// SPDX-License-Identifier: Apache-2.0
// The structure of a tree: its nodes in pre-order, in one immutable Python object.
#pragma once

#include "errors.h"
#include "kinds.h"
#include "python.h"
#include "registry.h"
#include "shapes.h"

namespace treeops {

inline constexpr int kMaxRecursionDepth = 1000;

// A node owns its two references (either may be NULL).
struct Node {
    NodeKind kind;
    bool has_entries;  // custom: `extra` is a (metadata, entries) pair
    bool in_order;     // dict, defaultdict: the children stand in the mapping's own order
    std::uint32_t arity;
    std::uint32_t num_leaves;  // of the subtree
    std::uint32_t num_nodes;   // of the subtree, this node included: the next sibling is there
    PyObject* subject;  // mapping: KeyShape; namedtuple, structseq: class; custom: Registration
    PyObject* extra;    // defaultdict: default_factory; deque: maxlen; custom: metadata

    KeyShape* shape() const { return reinterpret_cast<KeyShape*>(subject); }
    PyTypeObject* type() const { return reinterpret_cast<PyTypeObject*>(subject); }
    Registration* registration() const { return reinterpret_cast<Registration*>(subject); }
    PyObject* metadata() const { return has_entries ? PyTuple_GET_ITEM(extra, 0) : extra; }
    PyObject* entries() const { return has_entries ? PyTuple_GET_ITEM(extra, 1) : nullptr; }

    bool is_mapping() const {
        return kind == NodeKind::kDict || kind == NodeKind::kOrderedDict ||
               kind == NodeKind::kDefaultDict;
    }
    // Whether the children stand in sorted order rather than in the mapping's own.
    bool is_sorted() const {
        return (kind == NodeKind::kDict || kind == NodeKind::kDefaultDict) && !in_order;
    }
    // A mapping's keys in the order of the children.
    PyObject* child_keys() const { return is_sorted() ? shape()->sorted_keys : shape()->keys; }
    // Every child is a leaf.
    bool is_one_level() const { return num_nodes == arity + 1 && num_leaves == arity; }
};

// Nodes under construction; owns their references.
class NodeList {
  public:
    NodeList() = default;
    NodeList(const NodeList&) = delete;
    NodeList& operator=(const NodeList&) = delete;
    ~NodeList();

    void add_leaf() {
        make_room();
        nodes_.push_back(Node{NodeKind::kLeaf, false, false, 0, 1, 1, nullptr, nullptr});
    }

    // Adds an inner node; close() completes it once its children follow.
    std::size_t open(NodeKind kind, std::size_t arity, Ref subject = Ref(), Ref extra = Ref());
    void close(std::size_t index, std::size_t num_leaves);
    // Adds a node like `node`; close() completes it once its children follow.
    std::size_t open_like(const Node& node);
    // Puts `node`, which has as many children, in the place of an open node.
    void replace(std::size_t index, const Node& node);
    // Adds the whole subtree that starts at `root`.
    void copy(const Node* root);

    Node& operator[](std::size_t index) { return nodes_[index]; }
    std::size_t size() const { return nodes_.size(); }
    const Node* data() const { return nodes_.data(); }
    void disown() { nodes_.clear(); }

  private:
    // Fewer, larger steps than doubling: most trees are small or middling.
    void make_room() {
        if (nodes_.size() == nodes_.capacity()) nodes_.reserve(4 * nodes_.capacity());
    }
    absl::InlinedVector<Node, 32> nodes_;
};

struct TreeSpec {
    PyObject_VAR_HEAD PyObject* weak_references;
    PyObject* space;  // name of the namespace; "" unless a custom node was found there
    Py_hash_t hash;   // -1 while unknown
    bool none_is_leaf;
    Node nodes[1];  // ob_size of them

    const Node& root() const { return nodes[0]; }
};

extern PyType_Spec treespec_spec;

// Slots of the type.
PyObject* treespec_richcompare(PyObject* self, PyObject* other, int operation);  // compare.cpp
Py_hash_t treespec_hash(PyObject* self);
PyObject* treespec_repr(PyObject* self);  // repr.cpp

// Moves the nodes into a new treespec.
Ref make_treespec(State& state, NodeList& nodes, bool none_is_leaf, PyObject* space);

inline TreeSpec* as_treespec(PyObject* object) { return reinterpret_cast<TreeSpec*>(object); }

// The subtree that starts at `root`, as a treespec of its own.
Ref make_subtree(State& state, const Node* root, bool none_is_leaf, PyObject* space);

bool is_treespec(State& state, PyObject* object);

// The namespace of two treespecs that are joined: that of either, if the other has none, or both
// have the same; else a ValueError.
PyObject* joint_space(const char* who, PyObject* first, PyObject* second);

// Raises RecursionError if the nodes are more than MAX_RECURSION_DEPTH deep: treespecs that are put
// together from others might be.
void check_node_depth(const char* who, const NodeList& nodes);

// "list of 2", "dict of 3": a node as error messages name it.
Ref describe_node(State& state, const Node& node);

// The Python type a node stands for: a borrowed reference, Py_None for a leaf.
PyObject* node_type(State& state, const Node& node);

}  // namespace treeops
