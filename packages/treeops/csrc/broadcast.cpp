// SPDX-License-Identifier: Apache-2.0
#include "broadcast.h"

#include "flatten.h"
#include "flatten_up_to.h"
#include "state.h"
#include "unflatten.h"

namespace treeops {

namespace {

// `leaf` in the place of every leaf of `subtree`.
Ref repeat_in_tree(const Call& call, const FlattenOptions& options, PyObject* leaf,
                   PyObject* subtree) {
    Flattened found;
    flatten(call.state, call.who, subtree, options, found);
    const Node* root = found.nodes.data();
    if (root->kind == NodeKind::kLeaf) return Ref::borrow(leaf);
    References repeated;
    repeated.reserve(root->num_leaves);
    for (std::uint32_t i = 0; i < root->num_leaves; ++i) repeated.push_borrowed(leaf);
    return unflatten(call.state, root, repeated.data());
}

}  // namespace

Ref broadcast_prefix(const Call& call, BroadcastResult result) {
    check_positional(call, 2, 3, "prefix_tree, full_tree, is_leaf");
    const FlattenOptions options = parse_flatten_options(call, 2);
    Flattened prefix;
    flatten(call.state, call.who, call.arguments[0], options, prefix);
    References subtrees;
    flatten_up_to(call.state, TreeRole{call.who, 2}, prefix.nodes.data(), call.arguments[1],
                  subtrees);
    References& leaves = prefix.leaves;
    if (result == BroadcastResult::kTree) {
        for (std::size_t i = 0; i < leaves.size(); ++i) {
            Ref tree = repeat_in_tree(call, options, leaves[i], subtrees[i]);
            Ref leaf = Ref::steal(std::exchange(leaves[i], tree.release()));
        }
        return unflatten(call.state, prefix.nodes.data(), leaves.data());
    }
    Flattened repeated;
    for (std::size_t i = 0; i < leaves.size(); ++i) {
        Flattened found;
        flatten(call.state, call.who, subtrees[i], options, found);
        for (std::size_t j = found.leaves.size(); j > 0; --j) {
            repeated.leaves.push_borrowed(leaves[i]);
        }
    }
    return take_leaves(repeated);
}

}  // namespace treeops
