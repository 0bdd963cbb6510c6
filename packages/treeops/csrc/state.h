// SPDX-License-Identifier: Apache-2.0
// Everything the module keeps, one per interpreter: nothing in this package is a global variable.
#pragma once

#include <array>

#include "python.h"
#include "registry.h"
#include "shapes.h"

namespace treeops {

struct State {
    PyObject* module = nullptr;  // borrowed: the module owns the state

    // Types made by this module.
    Ref treespec_type;
    Ref key_shape_type;
    Ref registration_type;

    // Types and names looked up once.
    Ref defaultdict_type;
    Ref deque_type;
    Ref tuple_new;  // tuple.__new__
    Ref empty_tuple;
    Ref empty_string;
    Ref name_is_leaf;
    Ref name_none_is_leaf;
    Ref name_namespace;
    Ref name_treespec;
    Ref name_leaves;
    Ref name_default_factory;
    Ref name_maxlen;
    Ref rebuild_treespec;  // what a pickle calls

    Ref tree_iterator_type;

    // From treeops.accessors and treeops.typing, when first needed; see accessors.h.
    Ref accessor_type;
    Ref auto_entry;
    Ref sequence_entry;
    Ref mapping_entry;
    Ref namedtuple_entry;
    Ref structseq_entry;
    Ref kinds;  // tuple of the members of PyTreeKind

    Registry registry;
    ShapeTable shapes;

    std::array<Ref*, 24> owned_references() {
        return {&treespec_type,      &key_shape_type,    &registration_type, &defaultdict_type,
                &deque_type,         &tuple_new,         &empty_tuple,       &empty_string,
                &name_is_leaf,       &name_none_is_leaf, &name_namespace,    &name_treespec,
                &name_leaves,        &name_maxlen,       &rebuild_treespec,  &name_default_factory,
                &tree_iterator_type, &accessor_type,     &auto_entry,        &sequence_entry,
                &mapping_entry,      &namedtuple_entry,  &structseq_entry,   &kinds};
    }
    int traverse(visitproc visit, void* arg);
    void clear();
};

// From the module, and from an instance of one of its types.
State& state_of_module(PyObject* module);
State* find_state(PyObject* module);  // NULL once the module has been torn down
State& state_of_instance(PyObject* self);

}  // namespace treeops
