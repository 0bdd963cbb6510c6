// SPDX-License-Identifier: Apache-2.0
// The module and its functions on trees: METH_FASTCALL, as they are called once per tree.
#include "module.h"

#include <memory>

#include "accessors.h"
#include "arguments.h"
#include "broadcast.h"
#include "flatten.h"
#include "level.h"
#include "map.h"
#include "paths.h"
#include "pickle.h"
#include "state.h"
#include "tree_iterator.h"
#include "unflatten.h"

namespace treeops {

namespace {

// What the module object holds. The functions that pybind11 binds share the state, since they may
// outlive the module.
struct ModuleData {
    State* state;
    std::shared_ptr<State>* owner;
};

// ---- functions on trees --------------------------------------------------------------------

using Arguments = PyObject* const*;

constexpr const char kTreeFlatten[] = "tree_flatten";
constexpr const char kTreeFlattenWithPath[] = "tree_flatten_with_path";
constexpr const char kTreeLeaves[] = "tree_leaves";
constexpr const char kTreeStructure[] = "tree_structure";
constexpr const char kTreePaths[] = "tree_paths";
constexpr const char kTreeMap[] = "tree_map";
constexpr const char kTreeMapInplace[] = "tree_map_";
constexpr const char kTreeMapWithPath[] = "tree_map_with_path";
constexpr const char kTreeMapWithPathInplace[] = "tree_map_with_path_";
constexpr const char kTreeFlattenWithAccessor[] = "tree_flatten_with_accessor";
constexpr const char kTreeAccessors[] = "tree_accessors";
constexpr const char kTreeMapWithAccessor[] = "tree_map_with_accessor";
constexpr const char kTreeMapWithAccessorInplace[] = "tree_map_with_accessor_";

// What a function of one tree gives back of the flattened tree.
struct AsPair {
    static Ref take(State& state, const FlattenOptions& options, Flattened& flattened) {
        Ref leaves = take_leaves(flattened);
        Ref treespec = take_treespec(state, options, flattened);
        return check(PyTuple_Pack(2, leaves.get(), treespec.get()));
    }
};
struct AsTriple {
    static Ref take(State& state, const FlattenOptions& options, Flattened& flattened) {
        Ref paths = leaf_paths(flattened.nodes.data());
        Ref leaves = take_leaves(flattened);
        Ref treespec = take_treespec(state, options, flattened);
        return check(PyTuple_Pack(3, paths.get(), leaves.get(), treespec.get()));
    }
};
struct AsLeaves {
    static Ref take(State&, const FlattenOptions&, Flattened& flattened) {
        return take_leaves(flattened);
    }
};
struct AsStructure {
    static Ref take(State& state, const FlattenOptions& options, Flattened& flattened) {
        return take_treespec(state, options, flattened);
    }
};
struct AsPaths {
    static Ref take(State&, const FlattenOptions&, Flattened& flattened) {
        return leaf_paths(flattened.nodes.data());
    }
};

struct AsTripleWithAccessors {
    static Ref take(State& state, const FlattenOptions& options, Flattened& flattened) {
        Ref accessors = leaf_accessors(state, flattened.nodes.data());
        Ref leaves = take_leaves(flattened);
        Ref treespec = take_treespec(state, options, flattened);
        return check(PyTuple_Pack(3, accessors.get(), leaves.get(), treespec.get()));
    }
};
struct AsAccessors {
    static Ref take(State& state, const FlattenOptions&, Flattened& flattened) {
        return leaf_accessors(state, flattened.nodes.data());
    }
};

template <const char* kName, typename Result>
PyObject* function_of_tree(PyObject* module, Arguments arguments, Py_ssize_t count,
                           PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        const Call call{state_of_module(module), kName, arguments, count, names};
        check_positional(call, 1, 2, "tree, is_leaf");
        const FlattenOptions options = parse_flatten_options(call, 1);
        Flattened flattened;
        flatten(call.state, call.who, arguments[0], options, flattened);
        return Result::take(call.state, options, flattened).release();
    });
}

template <const char* kName, MapNames kNames, MapResult kResult>
PyObject* mapping_function(PyObject* module, Arguments arguments, Py_ssize_t count,
                           PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        const Call call{state_of_module(module), kName, arguments, count, names};
        return map_trees(call, kNames, kResult).release();
    });
}

PyObject* tree_unflatten(PyObject* module, Arguments arguments, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        const Call call{state_of_module(module), "tree_unflatten", arguments, count, names};
        PyObject *treespec, *leaves;
        parse_unflatten(call, treespec, leaves);
        return unflatten_iterable(call.state, call.who, treespec, leaves).release();
    });
}

constexpr const char kBroadcastPrefix[] = "broadcast_prefix";
constexpr const char kTreeBroadcastPrefix[] = "tree_broadcast_prefix";

template <const char* kName, BroadcastResult kResult>
PyObject* broadcasting_function(PyObject* module, Arguments arguments, Py_ssize_t count,
                                PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        const Call call{state_of_module(module), kName, arguments, count, names};
        return broadcast_prefix(call, kResult).release();
    });
}

PyObject* tree_iter(PyObject* module, Arguments arguments, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        const Call call{state_of_module(module), "tree_iter", arguments, count, names};
        check_positional(call, 1, 2, "tree, is_leaf");
        const FlattenOptions options = parse_flatten_options(call, 1);
        return make_tree_iterator(call.state, arguments[0], options).release();
    });
}

PyObject* tree_is_leaf(PyObject* module, Arguments arguments, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        const Call call{state_of_module(module), "tree_is_leaf", arguments, count, names};
        check_positional(call, 1, 2, "tree, is_leaf");
        const FlattenOptions options = parse_flatten_options(call, 1);
        return PyBool_FromLong(is_leaf_object(call.state, arguments[0], options));
    });
}

PyObject* all_leaves(PyObject* module, Arguments arguments, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        const Call call{state_of_module(module), "all_leaves", arguments, count, names};
        check_positional(call, 1, 2, "iterable, is_leaf");
        const FlattenOptions options = parse_flatten_options(call, 1);
        if (Py_TYPE(arguments[0])->tp_iter == nullptr && !PySequence_Check(arguments[0])) {
            raise(PyExc_TypeError, "%s: expected an iterable, got %S", call.who,
                  describe_object(arguments[0]).get());
        }
        Ref iterator = check(PyObject_GetIter(arguments[0]));
        while (PyObject* next = PyIter_Next(iterator.get())) {
            Ref item = Ref::steal(next);
            if (!is_leaf_object(call.state, item.get(), options)) Py_RETURN_FALSE;
        }
        if (PyErr_Occurred()) throw PythonError{};
        Py_RETURN_TRUE;
    });
}

PyObject* rebuild_treespec(PyObject* module, PyObject* payload) {
    return guarded<PyObject*>(
        nullptr, [&] { return load_treespec(state_of_module(module), payload).release(); });
}

PyMethodDef rebuild_treespec_def = {"_rebuild_treespec", rebuild_treespec, METH_VARARGS,
                                    "Makes a treespec from what its __reduce__ stored."};

template <typename Function>
PyCFunction as_method(Function function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

#define TREEOPS_OPTIONS ", *, none_is_leaf=False, namespace='')\n--\n\n"
#define TREEOPS_MAP_OPTIONS \
    ", tree, /, *rests, is_leaf=None, none_is_leaf=False, namespace='')\n--\n\n"

constexpr int kFast = METH_FASTCALL | METH_KEYWORDS;

PyMethodDef tree_functions[] = {
    {kTreeFlatten, as_method(function_of_tree<kTreeFlatten, AsPair>), kFast,
     "tree_flatten($module, tree, /, is_leaf=None" TREEOPS_OPTIONS
     "The leaves of a tree, as a list, and its structure.\n\n"
     "Args:\n"
     "    tree: Any nesting of containers; what is no container is a leaf.\n"
     "    is_leaf: Called with every node; a true answer makes the node a leaf.\n"
     "    none_is_leaf: Whether None is a leaf rather than a node without children.\n"
     "    namespace: Where to look for custom node types before the global namespace.\n\n"
     "Returns:\n"
     "    ``(leaves, treespec)``: leaves from left to right, dict values in the order of their\n"
     "    sorted keys.\n\n"
     "Raises:\n"
     "    RecursionError: The tree is more than MAX_RECURSION_DEPTH deep.\n\n"
     "Example:\n"
     "    >>> tree_flatten({'b': [1, 2], 'a': 3})\n"
     "    ([3, 1, 2], PyTreeSpec({'a': *, 'b': [*, *]}))"},
    {kTreeFlattenWithPath, as_method(function_of_tree<kTreeFlattenWithPath, AsTriple>), kFast,
     "tree_flatten_with_path($module, tree, /, is_leaf=None" TREEOPS_OPTIONS
     "Like tree_flatten, with the path of each leaf: ``(paths, leaves, treespec)``.\n\n"
     "A path is a tuple of keys and positions.\n\n"
     "Example:\n"
     "    >>> tree_flatten_with_path({'a': [1, 2]})\n"
     "    ([('a', 0), ('a', 1)], [1, 2], PyTreeSpec({'a': [*, *]}))"},
    {kTreeLeaves, as_method(function_of_tree<kTreeLeaves, AsLeaves>), kFast,
     "tree_leaves($module, tree, /, is_leaf=None" TREEOPS_OPTIONS
     "The leaves of a tree, as a list; see tree_flatten.\n\n"
     "Example:\n"
     "    >>> tree_leaves({'b': [1, 2], 'a': 3})\n"
     "    [3, 1, 2]"},
    {kTreeStructure, as_method(function_of_tree<kTreeStructure, AsStructure>), kFast,
     "tree_structure($module, tree, /, is_leaf=None" TREEOPS_OPTIONS
     "The structure of a tree; see tree_flatten.\n\n"
     "Example:\n"
     "    >>> tree_structure({'b': [1, 2], 'a': None})\n"
     "    PyTreeSpec({'a': None, 'b': [*, *]})"},
    {kTreePaths, as_method(function_of_tree<kTreePaths, AsPaths>), kFast,
     "tree_paths($module, tree, /, is_leaf=None" TREEOPS_OPTIONS
     "The path of each leaf; see tree_flatten_with_path.\n\n"
     "Example:\n"
     "    >>> tree_paths({'a': [1, 2]})\n"
     "    [('a', 0), ('a', 1)]"},
    {"tree_unflatten", as_method(tree_unflatten), kFast,
     "tree_unflatten($module, treespec, leaves)\n--\n\n"
     "The tree of a structure and an iterable of its leaves: the inverse of tree_flatten.\n\n"
     "Raises:\n"
     "    ValueError: There are more or fewer leaves than the structure has.\n\n"
     "Example:\n"
     "    >>> tree_unflatten(tree_structure({'b': [1, 2], 'a': 3}), 'xyz')\n"
     "    {'b': ['y', 'z'], 'a': 'x'}"},
    {kTreeMap, as_method(mapping_function<kTreeMap, MapNames::kNone, MapResult::kTree>), kFast,
     "tree_map($module, func" TREEOPS_MAP_OPTIONS
     "The tree of ``func(leaf, *others)`` for each leaf of a tree.\n\n"
     "Args:\n"
     "    func: Called with a leaf of `tree` and what stands in its place in each of `rests`.\n"
     "    tree: Gives the structure of the result.\n"
     "    rests: Trees that have the structure of `tree`, or have it as a prefix.\n"
     "    is_leaf, none_is_leaf, namespace: As for tree_flatten.\n\n"
     "Raises:\n"
     "    ValueError: One of `rests` differs; the message has its number and the path.\n\n"
     "Example:\n"
     "    >>> tree_map(lambda x, y: x + y, {'a': 1, 'b': [2]}, {'a': 10, 'b': [20]})\n"
     "    {'a': 11, 'b': [22]}"},
    {kTreeMapInplace,
     as_method(mapping_function<kTreeMapInplace, MapNames::kNone, MapResult::kArgument>), kFast,
     "tree_map_($module, func" TREEOPS_MAP_OPTIONS
     "Like tree_map, but for the effect of `func`: gives `tree` itself back.\n\n"
     "Example:\n"
     "    >>> tree_map_(list.clear, ([1], [2]), is_leaf=lambda x: isinstance(x, list))\n"
     "    ([], [])"},
    {kTreeMapWithPath,
     as_method(mapping_function<kTreeMapWithPath, MapNames::kPath, MapResult::kTree>), kFast,
     "tree_map_with_path($module, func" TREEOPS_MAP_OPTIONS
     "Like tree_map, with ``func(path, leaf, *others)``.\n\n"
     "Example:\n"
     "    >>> tree_map_with_path(lambda path, x: (path, x), {'a': [1]})\n"
     "    {'a': [(('a', 0), 1)]}"},
    {kTreeMapWithPathInplace,
     as_method(mapping_function<kTreeMapWithPathInplace, MapNames::kPath, MapResult::kArgument>),
     kFast,
     "tree_map_with_path_($module, func" TREEOPS_MAP_OPTIONS
     "Like tree_map_, with ``func(path, leaf, *others)``."},
    {kTreeMapWithAccessor,
     as_method(mapping_function<kTreeMapWithAccessor, MapNames::kAccessor, MapResult::kTree>),
     kFast,
     "tree_map_with_accessor($module, func" TREEOPS_MAP_OPTIONS
     "Like tree_map, with ``func(accessor, leaf, *others)``.\n\n"
     "Example:\n"
     "    >>> tree_map_with_accessor(lambda accessor, x: accessor.codify('tree'), {'a': [1]})\n"
     "    {'a': [\"tree['a'][0]\"]}"},
    {kTreeMapWithAccessorInplace,
     as_method(
         mapping_function<kTreeMapWithAccessorInplace, MapNames::kAccessor, MapResult::kArgument>),
     kFast,
     "tree_map_with_accessor_($module, func" TREEOPS_MAP_OPTIONS
     "Like tree_map_, with ``func(accessor, leaf, *others)``."},
    {kTreeFlattenWithAccessor,
     as_method(function_of_tree<kTreeFlattenWithAccessor, AsTripleWithAccessors>), kFast,
     "tree_flatten_with_accessor($module, tree, /, is_leaf=None" TREEOPS_OPTIONS
     "Like tree_flatten, with the accessor of each leaf: ``(accessors, leaves, treespec)``.\n\n"
     "Called with the tree, an accessor gives the leaf.\n\n"
     "Example:\n"
     "    >>> tree = {'a': [1, 2]}\n"
     "    >>> accessors, leaves, treespec = tree_flatten_with_accessor(tree)\n"
     "    >>> accessors[1](tree)\n"
     "    2"},
    {kTreeAccessors, as_method(function_of_tree<kTreeAccessors, AsAccessors>), kFast,
     "tree_accessors($module, tree, /, is_leaf=None" TREEOPS_OPTIONS
     "The accessor of each leaf; see tree_flatten_with_accessor."},
    {kTreeBroadcastPrefix,
     as_method(broadcasting_function<kTreeBroadcastPrefix, BroadcastResult::kTree>), kFast,
     "tree_broadcast_prefix($module, prefix_tree, full_tree, /, is_leaf=None" TREEOPS_OPTIONS
     "A tree like `full_tree`, with the leaves of its prefix `prefix_tree`, repeated.\n\n"
     "Raises:\n"
     "    ValueError: `prefix_tree` is no prefix; the message has the path.\n\n"
     "Example:\n"
     "    >>> tree_broadcast_prefix([1, 2], [{'a': 3, 'b': 4}, 5])\n"
     "    [{'a': 1, 'b': 1}, 2]"},
    {kBroadcastPrefix, as_method(broadcasting_function<kBroadcastPrefix, BroadcastResult::kLeaves>),
     kFast,
     "broadcast_prefix($module, prefix_tree, full_tree, /, is_leaf=None" TREEOPS_OPTIONS
     "The leaves of tree_broadcast_prefix, as a list.\n\n"
     "Example:\n"
     "    >>> broadcast_prefix([1, 2], [{'a': 3, 'b': 4}, 5])\n"
     "    [1, 1, 2]"},
    {"tree_iter", as_method(tree_iter), kFast,
     "tree_iter($module, tree, /, is_leaf=None" TREEOPS_OPTIONS
     "The leaves of a tree, one at a time; see tree_flatten.\n\n"
     "Containers are opened when the iteration reaches them.\n\n"
     "Example:\n"
     "    >>> next(tree_iter({'b': [1, 2], 'a': 3}))\n"
     "    3"},
    {"tree_is_leaf", as_method(tree_is_leaf), kFast,
     "tree_is_leaf($module, tree, /, is_leaf=None" TREEOPS_OPTIONS
     "Whether a tree is nothing but a leaf.\n\n"
     "Example:\n"
     "    >>> tree_is_leaf(1), tree_is_leaf([]), tree_is_leaf(None)\n"
     "    (True, False, False)"},
    {"all_leaves", as_method(all_leaves), kFast,
     "all_leaves($module, iterable, /, is_leaf=None" TREEOPS_OPTIONS
     "Whether every item is a leaf; see tree_is_leaf.\n\n"
     "Example:\n"
     "    >>> all_leaves([1, 2]), all_leaves([1, []])\n"
     "    (True, False)"},
};

// ---- the module ----------------------------------------------------------------------------

ModuleData* module_data(PyObject* module) {
    return static_cast<ModuleData*>(PyModule_GetState(module));
}

Ref make_type(PyObject* module, PyType_Spec& spec) {
    return check(PyType_FromModuleAndSpec(module, &spec, nullptr));
}

Ref import_attribute(const char* module_name, const char* name) {
    Ref module = check(PyImport_ImportModule(module_name));
    return check(PyObject_GetAttrString(module.get(), name));
}

void fill_state(State& state, PyObject* module) {
    state.module = module;
    state.treespec_type = make_type(module, treespec_spec);
    state.key_shape_type = make_type(module, key_shape_spec);
    state.tree_iterator_type = make_type(module, tree_iterator_spec);
    state.registration_type = make_type(module, registration_spec);
    state.defaultdict_type = import_attribute("collections", "defaultdict");
    state.deque_type = import_attribute("collections", "deque");
    state.tuple_new = attribute(reinterpret_cast<PyObject*>(&PyTuple_Type), "__new__");
    state.empty_tuple = check(PyTuple_New(0));
    const std::pair<Ref*, const char*> names[] = {
        {&state.empty_string, ""},
        {&state.name_is_leaf, "is_leaf"},
        {&state.name_none_is_leaf, "none_is_leaf"},
        {&state.name_namespace, "namespace"},
        {&state.name_treespec, "treespec"},
        {&state.name_leaves, "leaves"},
        {&state.name_default_factory, "default_factory"},
        {&state.name_maxlen, "maxlen"},
    };
    for (const auto& [target, text] : names) *target = check(PyUnicode_InternFromString(text));
    Ref private_name = check(PyUnicode_FromString("treeops._C"));
    state.rebuild_treespec =
        check(PyCFunction_NewEx(&rebuild_treespec_def, module, private_name.get()));
    state.registry.initialize();
    state.shapes.initialize();
}

void fill_module(const std::shared_ptr<State>& state, PyObject* module) {
    // The functions are public in `treeops`: that is where pickle and help() must find them.
    Ref public_name = check(PyUnicode_FromString("treeops"));
    for (PyMethodDef& definition : tree_functions) {
        Ref function = check(PyCFunction_NewEx(&definition, module, public_name.get()));
        check_status(PyObject_SetAttrString(module, definition.ml_name, function.get()));
    }
    check_status(PyObject_SetAttrString(module, rebuild_treespec_def.ml_name,
                                        state->rebuild_treespec.get()));
    check_status(PyObject_SetAttrString(module, "PyTreeSpec", state->treespec_type.get()));
    check_status(PyModule_AddIntConstant(module, "MAX_RECURSION_DEPTH", kMaxRecursionDepth));
    for (PyMethodDef* definition = treespec_functions; definition->ml_name; ++definition) {
        Ref function = check(PyCFunction_NewEx(definition, module, nullptr));
        check_status(PyObject_SetAttrString(module, definition->ml_name, function.get()));
    }
    bind_registry(module, state);
}

int execute_module(PyObject* module) {
    return guarded<int>(-1, [&] {
        if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
            raise(PyExc_ImportError,
                  "treeops: expected the main interpreter, got a sub-interpreter; import it in the "
                  "main interpreter or in another process");
        }
        ModuleData* data = module_data(module);
        auto state = std::make_shared<State>();
        data->owner = new std::shared_ptr<State>(state);
        data->state = state.get();
        fill_state(*state, module);
        fill_module(state, module);
        return 0;
    });
}

int traverse_module(PyObject* module, visitproc visit, void* arg) {
    ModuleData* data = module_data(module);
    return data == nullptr || data->state == nullptr ? 0 : data->state->traverse(visit, arg);
}

int clear_module(PyObject* module) {
    ModuleData* data = module_data(module);
    if (data != nullptr && data->state != nullptr) data->state->clear();
    return 0;
}

void free_module(void* module) {
    auto* object = static_cast<PyObject*>(module);
    clear_module(object);
    ModuleData* data = module_data(object);
    if (data == nullptr) return;
    data->state = nullptr;
    delete std::exchange(data->owner, nullptr);
}

PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, reinterpret_cast<void*>(execute_module)},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, nullptr},
};

PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    "treeops._C",
    "The compiled part of treeops; see treeops for what is public.",
    sizeof(ModuleData),
    nullptr,
    module_slots,
    traverse_module,
    clear_module,
    free_module,
};

}  // namespace

State* find_state(PyObject* module) {
    ModuleData* data = module_data(module);
    return data == nullptr || data->state == nullptr || data->state->module == nullptr
               ? nullptr
               : data->state;
}

State& state_of_module(PyObject* module) { return *module_data(module)->state; }

State& state_of_instance(PyObject* self) {
    return *static_cast<ModuleData*>(PyType_GetModuleState(Py_TYPE(self)))->state;
}

int State::traverse(visitproc visit, void* arg) {
    for (Ref* owned : owned_references()) Py_VISIT(owned->get());
    if (const int status = registry.traverse(visit, arg)) return status;
    return shapes.traverse(visit, arg);
}

void State::clear() {
    module = nullptr;
    registry.clear();
    shapes.clear();
}

}  // namespace treeops

PyMODINIT_FUNC PyInit__C() { return PyModuleDef_Init(&treeops::module_definition); }
