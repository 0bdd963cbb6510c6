// SPDX-License-Identifier: Apache-2.0
#include "treespec_build.h"

#include <limits>

#include "errors.h"
#include "level.h"
#include "stack.h"
#include "state.h"

namespace treeops {

namespace {

void require_none_is_leaf(const char* who, const TreeSpec* spec, bool none_is_leaf) {
    if (spec->none_is_leaf == none_is_leaf) return;
    raise(PyExc_ValueError, "%s: expected treespecs with none_is_leaf=%s, got one with %s", who,
          none_is_leaf ? "True" : "False", none_is_leaf ? "False" : "True");
}

Ref one_level_of(State& state, const Node& node, bool none_is_leaf, PyObject* space) {
    NodeList nodes;
    const std::size_t index = nodes.open_like(node);
    for (std::uint32_t i = 0; i < node.arity; ++i) nodes.add_leaf();
    nodes.close(index, node.arity);
    return make_treespec(state, nodes, none_is_leaf, space);
}

class Transformer {
  public:
    Transformer(State& state, const TreeSpec* spec, PyObject* node_func, PyObject* leaf_func)
        : state_(state),
          stack_(spec->nodes),
          spec_(spec),
          node_func_(node_func),
          leaf_func_(leaf_func),
          space_(Ref::borrow(spec->space)) {}

    // Children first: what the function of a node gives takes its place when they are done.
    std::size_t visit(const Node*& node) {
        const Node& self = *node++;
        if (self.kind == NodeKind::kLeaf) return visit_leaf(self);
        stack_.check();
        const std::size_t index = nodes_.open_like(self);
        std::size_t num_leaves = 0;
        for (std::uint32_t i = 0; i < self.arity; ++i) num_leaves += visit(node);
        if (node_func_ != nullptr) replace(index, self);
        nodes_.close(index, num_leaves);
        return num_leaves;
    }
    Ref take() {
        check_node_depth(kWho, nodes_);
        return make_treespec(state_, nodes_, spec_->none_is_leaf, space_.get());
    }

  private:
    static constexpr const char* kWho = "PyTreeSpec.transform";

    Ref call(PyObject* function, const Node& node) {
        Ref given = node.kind == NodeKind::kLeaf
                        ? make_subtree(state_, &node, spec_->none_is_leaf, spec_->space)
                        : one_level_of(state_, node, spec_->none_is_leaf, spec_->space);
        Ref got = check(PyObject_CallOneArg(function, given.get()));
        if (!is_treespec(state_, got.get())) {
            raise(PyExc_TypeError, "%s: expected %s to return a PyTreeSpec, got %S", kWho,
                  node.kind == NodeKind::kLeaf ? "f_leaf" : "f_node",
                  describe_object(got.get()).get());
        }
        require_none_is_leaf(kWho, as_treespec(got.get()), spec_->none_is_leaf);
        space_ = Ref::borrow(joint_space(kWho, space_.get(), as_treespec(got.get())->space));
        return got;
    }
    std::size_t visit_leaf(const Node& node) {
        if (leaf_func_ == nullptr) {
            nodes_.add_leaf();
            return 1;
        }
        Ref got = call(leaf_func_, node);
        nodes_.copy(as_treespec(got.get())->nodes);
        return as_treespec(got.get())->root().num_leaves;
    }
    void replace(std::size_t index, const Node& node) {
        Ref got = call(node_func_, node);
        const Node& root = as_treespec(got.get())->root();
        if (root.num_leaves != node.arity) {
            raise(PyExc_ValueError,
                  "%s: expected f_node to return a treespec with as many leaves as %S has "
                  "children, got %u of them",
                  kWho, describe_node(state_, node).get(), root.num_leaves);
        }
        if (root.kind == NodeKind::kLeaf || !root.is_one_level()) {
            raise(PyExc_ValueError,
                  "%s: expected f_node to return a one-level treespec for %S, got one of %u nodes",
                  kWho, describe_node(state_, node).get(), root.num_nodes);
        }
        nodes_.replace(index, root);
    }

    State& state_;
    const StackGuard stack_;
    const TreeSpec* spec_;
    PyObject* node_func_;
    PyObject* leaf_func_;
    Ref space_;
    NodeList nodes_;
};

}  // namespace

Ref make_leaf_treespec(State& state, bool none_is_leaf) {
    NodeList nodes;
    nodes.add_leaf();
    return make_treespec(state, nodes, none_is_leaf, state.empty_string.get());
}

Ref make_none_treespec(State& state, bool none_is_leaf) {
    if (none_is_leaf) return make_leaf_treespec(state, none_is_leaf);
    NodeList nodes;
    nodes.open(NodeKind::kNone, 0);
    return make_treespec(state, nodes, none_is_leaf, state.empty_string.get());
}

Ref treespec_from_collection(State& state, const char* who, PyObject* collection,
                             const FlattenOptions& options) {
    Level level;
    References children;
    if (!open_level(state, who, collection, options, level, children)) {
        Ref text = check(PyUnicode_FromFormat(
            "%s: expected a container, got the leaf %S; its treespec is that of a leaf", who,
            describe_object(collection).get()));
        Ref message = check(PyUnicode_AsUTF8String(text.get()));
        check_status(PyErr_WarnEx(PyExc_UserWarning, PyBytes_AS_STRING(message.get()), 1));
        return make_leaf_treespec(state, options.none_is_leaf);
    }
    NodeList& nodes = level.node;
    PyObject* space = state.empty_string.get();
    std::size_t num_leaves = 0;
    for (std::size_t i = 0; i < children.size(); ++i) {
        if (!is_treespec(state, children[i])) {
            raise(PyExc_ValueError, "%s: expected a container of PyTreeSpecs, got %S in it", who,
                  describe_object(children[i]).get());
        }
        const TreeSpec* child = as_treespec(children[i]);
        require_none_is_leaf(who, child, options.none_is_leaf);
        space = joint_space(who, space, child->space);
        nodes.copy(child->nodes);
        num_leaves += child->root().num_leaves;
    }
    nodes.close(0, num_leaves);
    check_node_depth(who, nodes);
    PyObject* joint = joint_space(who, options.space, space);
    if (level.found_custom) space = joint;
    return make_treespec(state, nodes, options.none_is_leaf, space);
}

Ref one_level_treespec(State& state, const TreeSpec* spec) {
    if (spec->root().kind == NodeKind::kLeaf) return Ref();
    return one_level_of(state, spec->root(), spec->none_is_leaf, spec->space);
}

Ref compose_treespecs(State& state, const TreeSpec* outer, const TreeSpec* inner) {
    const char* who = "PyTreeSpec.compose";
    require_none_is_leaf(who, inner, outer->none_is_leaf);
    PyObject* space = joint_space(who, outer->space, inner->space);
    const std::uint64_t inner_nodes = inner->root().num_nodes;
    const std::uint64_t inner_leaves = inner->root().num_leaves;
    const auto composed = [&](const Node& node) {
        return node.num_nodes + node.num_leaves * (inner_nodes - 1);
    };
    if (composed(outer->root()) >= std::numeric_limits<std::uint32_t>::max()) {
        raise(PyExc_OverflowError, "%s: expected fewer than 2**32 nodes, got more", who);
    }
    NodeList nodes;
    for (Py_ssize_t i = 0; i < Py_SIZE(outer); ++i) {
        const Node& node = outer->nodes[i];
        if (node.kind == NodeKind::kLeaf) {
            nodes.copy(inner->nodes);
            continue;
        }
        Node& copy = nodes[nodes.open_like(node)];
        copy.num_nodes = static_cast<std::uint32_t>(composed(node));
        copy.num_leaves = static_cast<std::uint32_t>(node.num_leaves * inner_leaves);
    }
    check_node_depth(who, nodes);
    return make_treespec(state, nodes, outer->none_is_leaf, space);
}

Ref transform_treespec(State& state, const TreeSpec* spec, PyObject* node_func,
                       PyObject* leaf_func) {
    Transformer transformer(state, spec, node_func, leaf_func);
    const Node* node = spec->nodes;
    transformer.visit(node);
    return transformer.take();
}

}  // namespace treeops
