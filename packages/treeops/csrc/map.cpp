// SPDX-License-Identifier: Apache-2.0
#include "map.h"

#include "accessors.h"
#include "flatten_up_to.h"
#include "paths.h"
#include "state.h"
#include "unflatten.h"

namespace treeops {

Ref map_trees(const Call& call, MapNames names, MapResult result) {
    State& state = call.state;
    check_positional(call, 2, PY_SSIZE_T_MAX, "func, tree, *rests");
    const FlattenOptions options = parse_flatten_options(call, -1);
    PyObject* func = call.arguments[0];
    PyObject* tree = call.arguments[1];
    if (!PyCallable_Check(func)) {
        raise(PyExc_TypeError, "%s: expected func to be callable, got %S", call.who,
              describe_object(func).get());
    }

    Flattened flattened;
    flatten(state, call.who, tree, options, flattened);
    References& leaves = flattened.leaves;
    const std::size_t num_leaves = leaves.size();
    const auto num_rests = static_cast<std::size_t>(call.num_positional - 2);
    References rests;  // the leaves of one tree after the other
    for (std::size_t i = 0; i < num_rests; ++i) {
        const TreeRole role{call.who, static_cast<int>(i) + 2};
        flatten_up_to(state, role, flattened.nodes.data(), call.arguments[2 + i], rests);
    }
    const Node* root = flattened.nodes.data();
    Ref paths = names == MapNames::kPath       ? leaf_paths(root)
                : names == MapNames::kAccessor ? leaf_accessors(state, root)
                                               : Ref();
    const bool with_path = names != MapNames::kNone;

    // stack[0] is the callee's to use; see PY_VECTORCALL_ARGUMENTS_OFFSET.
    absl::InlinedVector<PyObject*, 8> stack(1 + (with_path ? 1 : 0) + 1 + num_rests, nullptr);
    PyObject** arguments = stack.data() + 1;
    const std::size_t num_arguments = stack.size() - 1;
    for (std::size_t i = 0; i < num_leaves; ++i) {
        PyObject** next = arguments;
        if (with_path) *next++ = PyList_GET_ITEM(paths.get(), static_cast<Py_ssize_t>(i));
        *next++ = leaves[i];
        for (std::size_t j = 0; j < num_rests; ++j) *next++ = rests[j * num_leaves + i];
        Ref value = check(PyObject_Vectorcall(
            func, arguments, num_arguments | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
        if (result == MapResult::kTree) {
            Ref leaf = Ref::steal(std::exchange(leaves[i], value.release()));
        }
    }
    if (result == MapResult::kArgument) return Ref::borrow(tree);
    return unflatten(state, flattened.nodes.data(), leaves.data());
}

}  // namespace treeops
