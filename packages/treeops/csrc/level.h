// SPDX-License-Identifier: Apache-2.0
// One level of a tree: a node and the objects that are its children.
#pragma once

#include "flatten.h"
#include "python.h"
#include "treespec.h"

namespace treeops {

struct Level {
    NodeList node;              // the inner node, without its children; empty for a leaf
    bool found_custom = false;  // or the namespace orders this dict: a treespec of it names it
};

// Opens `object` and pushes its children, in order; a leaf pushes nothing and gives false. The
// predicate of the options is not asked.
bool open_level(State& state, const char* who, PyObject* object, const FlattenOptions& options,
                Level& level, References& children);

// Whether an object is a leaf: by the predicate of the options, or by its type.
bool is_leaf_object(State& state, PyObject* object, const FlattenOptions& options);

}  // namespace treeops
