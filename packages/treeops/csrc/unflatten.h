// SPDX-License-Identifier: Apache-2.0
// From nodes and leaves back to a tree.
#pragma once

#include "python.h"
#include "treespec.h"

namespace treeops {

// Builds the tree of the nodes that start at `root`. `leaves` holds root.num_leaves references that
// stay alive, and in place, during the call, whatever code runs.
Ref unflatten(State& state, const Node* root, PyObject* const* leaves);

// The container of one node with `node.arity` values.
Ref unflatten_node(State& state, const Node& node, PyObject* const* values);

// The tree of a treespec and any iterable of its leaves.
Ref unflatten_iterable(State& state, const char* who, PyObject* treespec, PyObject* iterable);

// The leaves of any iterable, held, if there are exactly as many as `expected`.
void gather_leaves(const char* who, PyObject* iterable, std::size_t expected, References& leaves);

}  // namespace treeops
