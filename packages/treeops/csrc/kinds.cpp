// SPDX-License-Identifier: Apache-2.0
#include "kinds.h"

#include "errors.h"
#include "state.h"

namespace treeops {

namespace {

bool has_int_attribute(PyTypeObject* type, const char* name) {
    Ref value = find_attribute(reinterpret_cast<PyObject*>(type), name);
    return value && PyLong_Check(value.get());
}

bool has_callable_attribute(PyTypeObject* type, const char* name) {
    Ref value = find_attribute(reinterpret_cast<PyObject*>(type), name);
    return value && PyCallable_Check(value.get());
}

// Weak reference callback: the type is going away, its address may be used again.
PyObject* forget_type(PyObject* module, PyObject* watcher) {
    if (State* state = find_state(module)) state->registry.forget(watcher);
    Py_RETURN_NONE;
}

PyMethodDef forget_type_def = {"_forget_type", forget_type, METH_O, nullptr};

Ref watch(State& state, PyTypeObject* type) {
    if ((type->tp_flags & Py_TPFLAGS_HEAPTYPE) == 0) return Ref();
    Ref callback = check(PyCFunction_New(&forget_type_def, state.module));
    return check(PyWeakref_NewRef(reinterpret_cast<PyObject*>(type), callback.get()));
}

// collections.namedtuple evaluates `lambda _cls, x, y: _tuple_new(_cls, (x, y))` in a namespace of
// its own; a function with those globals is that lambda.
bool is_generated_new(State& state, PyObject* function) {
    if (!PyFunction_Check(function)) return false;
    PyObject* globals = PyFunction_GET_GLOBALS(function);  // borrowed
    PyObject* tuple_new = PyDict_GetItemString(globals, "_tuple_new");
    PyObject* name = PyDict_GetItemString(globals, "__name__");
    if (tuple_new != state.tuple_new.get() || name == nullptr || !PyUnicode_Check(name)) {
        return false;
    }
    Ref prefix = check(PyUnicode_FromString("namedtuple_"));
    return PyUnicode_Tailmatch(name, prefix.get(), 0, PY_SSIZE_T_MAX, -1) == 1;
}

}  // namespace

int KindCache::traverse(visitproc visit, void* arg) {
    for (KindEntry& entry : entries_) Py_VISIT(entry.watcher);
    return 0;
}

void KindCache::clear() {
    for (KindEntry& entry : entries_) {
        PyObject* watcher = entry.watcher;
        entry = KindEntry{};
        Py_XDECREF(watcher);
    }
}

void KindCache::forget(PyObject* watcher) {
    for (KindEntry& entry : entries_) {
        if (entry.watcher == watcher) {
            entry = KindEntry{};
            Py_DECREF(watcher);
        }
    }
}

bool is_structseq_class(PyTypeObject* type) {
    return type->tp_base == &PyTuple_Type && (type->tp_flags & Py_TPFLAGS_BASETYPE) == 0 &&
           PyTuple_GET_SIZE(type->tp_bases) == 1 && has_int_attribute(type, "n_fields") &&
           has_int_attribute(type, "n_sequence_fields") &&
           has_int_attribute(type, "n_unnamed_fields");
}

bool is_namedtuple_class(PyTypeObject* type) {
    if (!PyType_FastSubclass(type, Py_TPFLAGS_TUPLE_SUBCLASS)) return false;
    Ref fields = find_attribute(reinterpret_cast<PyObject*>(type), "_fields");
    if (!fields) return false;
    if (!PyTuple_Check(fields.get())) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(fields.get()); ++i) {
        if (!PyUnicode_CheckExact(PyTuple_GET_ITEM(fields.get(), i))) return false;
    }
    return has_callable_attribute(type, "_make") && has_callable_attribute(type, "_asdict");
}

bool namedtuple_fills(State& state, PyTypeObject* type) {
    KindEntry& entry = state.registry.global().kinds().slot(type);
    const bool cached = entry.type == type;
    if (cached && entry.fills_version != 0 && entry.fills_version == type->tp_version_tag) {
        return entry.fills;
    }
    // Looking __new__ up also gives the type a version tag.
    Ref function = attribute(reinterpret_cast<PyObject*>(type), "__new__");
    const bool fills =
        Py_TYPE(type)->tp_call == PyType_Type.tp_call &&  // a metaclass may have its own
        type->tp_init == PyBaseObject_Type.tp_init && type->tp_alloc == PyType_GenericAlloc &&
        type->tp_itemsize == PyTuple_Type.tp_itemsize && is_generated_new(state, function.get());
    KindEntry& fresh = resolve_kind(state, state.registry.global(), type);
    fresh.fills = fills;
    fresh.fills_version = type->tp_version_tag;
    return fills;
}

namespace {

NodeKind builtin_kind(State& state, PyTypeObject* type) {
    if (type == &PyODict_Type) return NodeKind::kOrderedDict;
    if (type == reinterpret_cast<PyTypeObject*>(state.defaultdict_type.get())) {
        return NodeKind::kDefaultDict;
    }
    if (type == reinterpret_cast<PyTypeObject*>(state.deque_type.get())) return NodeKind::kDeque;
    if (type == &PyTuple_Type) return NodeKind::kTuple;
    if (type == &PyList_Type) return NodeKind::kList;
    if (type == &PyDict_Type) return NodeKind::kDict;
    if (type == Py_TYPE(Py_None)) return NodeKind::kNone;
    if (is_structseq_class(type)) return NodeKind::kStructSequence;
    return is_namedtuple_class(type) ? NodeKind::kNamedTuple : NodeKind::kLeaf;
}

}  // namespace

KindEntry& resolve_kind(State& state, Namespace& space, PyTypeObject* type) {
    // Probing a type runs its metaclass, and any allocation may collect garbage: code that runs
    // meanwhile may change the registry, and then the answer is worked out again.
    constexpr int kAttempts = 16;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
        KindEntry& slot = space.kinds().slot(type);
        if (slot.type == type) return slot;
        const unsigned long epoch = state.registry.epoch();
        KindEntry found;
        found.type = type;
        Registration* registration = space.find(type);
        if (registration == nullptr) registration = state.registry.global().find(type);
        found.registration = registration;
        found.kind = registration != nullptr ? NodeKind::kCustom : builtin_kind(state, type);
        Ref watcher = watch(state, type);
        if (epoch != state.registry.epoch()) continue;
        PyObject* evicted = slot.watcher;
        found.watcher = watcher.release();
        slot = found;
        Py_XDECREF(evicted);
        return slot;
    }
    raise(PyExc_RuntimeError,
          "treeops: expected the registry to stay as it is while a class is looked at, got a change "
          "each time %S was; do not register nodes in a metaclass",
          type_name(type).get());
}

}  // namespace treeops
