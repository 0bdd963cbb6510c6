// SPDX-License-Identifier: Apache-2.0
#include "arguments.h"

#include "state.h"

namespace treeops {

namespace {

// Names in calls are interned, so nearly always the first comparison decides.
bool is_name(PyObject* name, const Ref& expected) {
    return name == expected.get() || PyUnicode_Compare(name, expected.get()) == 0;
}

bool truth_of(PyObject* value) {
    if (value == Py_False) return false;
    if (value == Py_True) return true;
    const int truth = PyObject_IsTrue(value);
    check_status(truth);
    return truth != 0;
}

void set_is_leaf(const Call& call, FlattenOptions& options, PyObject* value) {
    if (value == Py_None) return;
    if (!PyCallable_Check(value)) {
        raise(PyExc_TypeError, "%s: expected is_leaf to be callable or None, got %S", call.who,
              describe_object(value).get());
    }
    options.is_leaf = value;
}

}  // namespace

void check_positional(const Call& call, Py_ssize_t least, Py_ssize_t most, const char* names) {
    if (call.num_positional < least) {
        raise(PyExc_TypeError, "%s: expected positional arguments %s, got %zd of them", call.who,
              names, call.num_positional);
    }
    if (call.num_positional > most) {
        raise(PyExc_TypeError, "%s: expected at most %zd positional arguments (%s), got %zd",
              call.who, most, names, call.num_positional);
    }
}

FlattenOptions parse_flatten_options(const Call& call, Py_ssize_t is_leaf_position) {
    State& state = call.state;
    FlattenOptions options;
    options.space = state.empty_string.get();
    const bool positional_is_leaf = is_leaf_position >= 0 && call.num_positional > is_leaf_position;
    if (positional_is_leaf) set_is_leaf(call, options, call.arguments[is_leaf_position]);
    if (call.keyword_names == nullptr) return options;

    const Py_ssize_t count = PyTuple_GET_SIZE(call.keyword_names);
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* name = PyTuple_GET_ITEM(call.keyword_names, i);
        PyObject* value = call.arguments[call.num_positional + i];
        if (is_name(name, state.name_is_leaf)) {
            if (positional_is_leaf) {
                raise(PyExc_TypeError, "%s: expected is_leaf once, got it by position and by name",
                      call.who);
            }
            set_is_leaf(call, options, value);
        } else if (is_name(name, state.name_none_is_leaf)) {
            options.none_is_leaf = truth_of(value);
        } else if (is_name(name, state.name_namespace)) {
            if (!PyUnicode_Check(value)) {
                raise(PyExc_TypeError, "%s: expected namespace to be a str, got %S", call.who,
                      describe_object(value).get());
            }
            options.space = value;
        } else {
            raise(PyExc_TypeError, "%s: expected keywords is_leaf, none_is_leaf, namespace, got %R",
                  call.who, name);
        }
    }
    return options;
}

void parse_unflatten(const Call& call, PyObject*& treespec, PyObject*& leaves) {
    check_positional(call, 0, 2, "treespec, leaves");
    treespec = call.num_positional > 0 ? call.arguments[0] : nullptr;
    leaves = call.num_positional > 1 ? call.arguments[1] : nullptr;
    const Py_ssize_t count =
        call.keyword_names == nullptr ? 0 : PyTuple_GET_SIZE(call.keyword_names);
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* name = PyTuple_GET_ITEM(call.keyword_names, i);
        PyObject** target = is_name(name, call.state.name_treespec) ? &treespec
                            : is_name(name, call.state.name_leaves) ? &leaves
                                                                    : nullptr;
        if (target == nullptr || *target != nullptr) {
            raise(PyExc_TypeError, "%s: expected treespec and leaves, each once, got keyword %R",
                  call.who, name);
        }
        *target = call.arguments[call.num_positional + i];
    }
    if (treespec == nullptr || leaves == nullptr) {
        raise(PyExc_TypeError, "%s: expected treespec and leaves, got %zd arguments", call.who,
              call.num_positional + count);
    }
    if (!Py_IS_TYPE(treespec, reinterpret_cast<PyTypeObject*>(call.state.treespec_type.get()))) {
        raise(PyExc_TypeError, "%s: expected treespec to be a PyTreeSpec, got %S", call.who,
              describe_object(treespec).get());
    }
}

}  // namespace treeops
