// SPDX-License-Identifier: Apache-2.0
// Treespecs made from treespecs.
#pragma once

#include "flatten.h"
#include "python.h"
#include "treespec.h"

namespace treeops {

Ref make_leaf_treespec(State& state, bool none_is_leaf);

// The treespec of None.
Ref make_none_treespec(State& state, bool none_is_leaf);

// The treespec whose root is the container `collection` and whose children are the treespecs in it.
Ref treespec_from_collection(State& state, const char* who, PyObject* collection,
                             const FlattenOptions& options);

// The root alone, with leaves for children; empty for a leaf.
Ref one_level_treespec(State& state, const TreeSpec* spec);

// `outer` with every leaf replaced by `inner`.
Ref compose_treespecs(State& state, const TreeSpec* outer, const TreeSpec* inner);

// Every node and leaf replaced by what the functions (NULL: nothing changes) make of it, children
// first.
Ref transform_treespec(State& state, const TreeSpec* spec, PyObject* node_func,
                       PyObject* leaf_func);

}  // namespace treeops
