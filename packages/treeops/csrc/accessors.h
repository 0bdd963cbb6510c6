// SPDX-License-Identifier: Apache-2.0
// Accessors: paths whose steps know the type of the node they start from. The classes are written
// in Python, in treeops.accessors, and imported when first asked for.
#pragma once

#include "python.h"
#include "treespec.h"

namespace treeops {

// The member of treeops.typing.PyTreeKind: a borrowed reference.
PyObject* kind_object(State& state, NodeKind kind);

// The class of the entries of a node's children: a borrowed reference. Not for leaves and None.
PyObject* entry_type_of(State& state, const Node& node);

// One accessor per leaf, in order.
Ref leaf_accessors(State& state, const Node* root);

}  // namespace treeops
