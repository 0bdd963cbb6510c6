// SPDX-License-Identifier: Apache-2.0
// From leaves back up a treespec with the caller's functions at each node.
#pragma once

#include "python.h"
#include "treespec.h"

namespace treeops {

enum class NodeCall {
    kContainer,  // f_node(container of the children's results)
    kParts,      // f_node(type, metadata, tuple of the children's results)
};

// `leaves` holds root.num_leaves references. NULL functions: the container, the leaf.
Ref traverse(State& state, const Node* root, PyObject* const* leaves, NodeCall call,
             PyObject* node_func, PyObject* leaf_func);

}  // namespace treeops
