// SPDX-License-Identifier: Apache-2.0
#include "traverse.h"

#include "stack.h"
#include "state.h"
#include "unflatten.h"

namespace treeops {

namespace {

// What, besides the children, makes a node: as the flatten function of a custom node would give it.
Ref metadata_of(const Node& node) {
    switch (node.kind) {
        case NodeKind::kDict:
        case NodeKind::kOrderedDict:
            return check(PySequence_List(node.child_keys()));
        case NodeKind::kDefaultDict: {
            Ref keys = check(PySequence_List(node.child_keys()));
            return check(PyTuple_Pack(2, node.extra, keys.get()));
        }
        case NodeKind::kDeque:
            return Ref::borrow(node.extra);
        case NodeKind::kNamedTuple:
        case NodeKind::kStructSequence:
            return Ref::borrow(node.subject);
        case NodeKind::kCustom:
            return Ref::borrow(node.metadata());
        default:
            return Ref::borrow(Py_None);
    }
}

class Traverser {
  public:
    Traverser(State& state, const Node* root, PyObject* const* leaves, NodeCall call,
              PyObject* node_func, PyObject* leaf_func)
        : state_(state),
          stack_(root),
          node_(root),
          leaf_(leaves),
          call_(call),
          node_func_(node_func),
          leaf_func_(leaf_func) {}

    Ref visit() {
        const Node& self = *node_++;
        if (self.kind == NodeKind::kLeaf) {
            PyObject* leaf = *leaf_++;
            if (leaf_func_ == nullptr) return Ref::borrow(leaf);
            return check(PyObject_CallOneArg(leaf_func_, leaf));
        }
        stack_.check();
        const std::size_t base = results_.size();
        for (std::uint32_t i = 0; i < self.arity; ++i) {
            if (node_->kind == NodeKind::kLeaf && leaf_func_ == nullptr) {
                results_.push_borrowed(*leaf_++);
                ++node_;
            } else {
                results_.push_stolen(visit());
            }
        }
        Ref result = finish(self, results_.data() + base);
        results_.truncate(base);
        return result;
    }

  private:
    Ref finish(const Node& self, PyObject* const* results) {
        if (node_func_ == nullptr) return unflatten_node(state_, self, results);
        if (call_ == NodeCall::kContainer) {
            Ref container = unflatten_node(state_, self, results);
            return check(PyObject_CallOneArg(node_func_, container.get()));
        }
        Ref metadata = metadata_of(self);
        Ref children = check(PyTuple_New(static_cast<Py_ssize_t>(self.arity)));
        for (std::uint32_t i = 0; i < self.arity; ++i) {
            PyTuple_SET_ITEM(children.get(), i, new_reference(results[i]));
        }
        PyObject* arguments[] = {node_type(state_, self), metadata.get(), children.get()};
        return check(PyObject_Vectorcall(node_func_, arguments, 3, nullptr));
    }

    State& state_;
    const StackGuard stack_;
    const Node* node_;
    PyObject* const* leaf_;
    NodeCall call_;
    PyObject* node_func_;
    PyObject* leaf_func_;
    References results_;  // finished children on the way down
};

}  // namespace

Ref traverse(State& state, const Node* root, PyObject* const* leaves, NodeCall call,
             PyObject* node_func, PyObject* leaf_func) {
    return Traverser(state, root, leaves, call, node_func, leaf_func).visit();
}

}  // namespace treeops
