// SPDX-License-Identifier: Apache-2.0
// Where in a tree: entries, paths of leaves, and the text of a path in an error message.
#pragma once

#include "python.h"
#include "treespec.h"

namespace treeops {

// One step down from a node, on the C stack of a walk; NULL `parent` ends at the root.
struct PathStep {
    const PathStep* parent;
    const Node* node;
    std::uint32_t child;
};

// What leads from a node to its `child`: a key, a position, or an entry given by a custom type.
Ref child_entry(const Node& node, std::uint32_t child);

// The names of the fields of a namedtuple or structseq node, one per child.
Ref field_names(const Node& node);

// "['enc'][0]" or "the root".
Ref path_text(const PathStep* step);

// How an error names a tree that differs from another: "argument 2 differs from argument 1".
struct TreeRole {
    const char* who;
    int number;  // of `what`; 0: it has none
    const char* what = "argument";
    const char* whole = "argument 1";
};

[[noreturn]] void raise_difference(const TreeRole& role, const PathStep* step, PyObject* expected,
                                   PyObject* got);

// repr of the keys of `from` that are not in `other`: at most eight of them.
Ref missing_keys(PyObject* from, PyObject* other);

// One tuple of entries per leaf, in order.
Ref leaf_paths(const Node* root);

}  // namespace treeops
