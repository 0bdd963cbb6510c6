// SPDX-License-Identifier: Apache-2.0
// From a tree to its leaves and nodes.
#pragma once

#include "python.h"
#include "treespec.h"

namespace treeops {

struct FlattenOptions {
    PyObject* is_leaf = nullptr;  // NULL: no predicate
    bool none_is_leaf = false;
    PyObject* space = nullptr;  // name of the namespace
};

struct Flattened {
    NodeList nodes;
    References leaves;
    bool found_custom = false;  // or the namespace orders dicts: the treespec names it
};

// `who` names the caller's function in errors.
void flatten(State& state, const char* who, PyObject* tree, const FlattenOptions& options,
             Flattened& result);

// The treespec of a flattened tree; takes its nodes.
Ref take_treespec(State& state, const FlattenOptions& options, Flattened& flattened);

// The leaves as a list; takes them.
Ref take_leaves(Flattened& flattened);

// What a registered flatten function returned, checked.
struct CustomChildren {
    Ref children;  // tuple
    Ref metadata;
    Ref entries;  // tuple, or NULL: the positions
};

CustomChildren flatten_custom(const char* who, Registration* registration, PyObject* object);

}  // namespace treeops
