// SPDX-License-Identifier: Apache-2.0
#include "registry.h"

#include "errors.h"
#include "state.h"

namespace treeops {

namespace {

int registration_traverse(PyObject* self, visitproc visit, void* arg) {
    auto* registration = reinterpret_cast<Registration*>(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(registration->type);
    Py_VISIT(registration->flatten_func);
    Py_VISIT(registration->unflatten_func);
    Py_VISIT(registration->entry_type);
    return 0;
}

int registration_clear(PyObject* self) {
    auto* registration = reinterpret_cast<Registration*>(self);
    // A finalizer may still call through a treespec: it gets "not callable", not a crash.
    for (PyObject** field : {&registration->flatten_func, &registration->unflatten_func}) {
        PyObject* old = std::exchange(*field, new_reference(Py_None));
        Py_DECREF(old);
    }
    return 0;
}

void registration_dealloc(PyObject* self) {
    auto* registration = reinterpret_cast<Registration*>(self);
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(registration->type);
    Py_XDECREF(registration->flatten_func);
    Py_XDECREF(registration->unflatten_func);
    Py_XDECREF(registration->entry_type);
    Py_XDECREF(registration->space);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

PyType_Slot registration_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(registration_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(registration_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(registration_clear)},
    {0, nullptr},
};

Ref space_text(PyObject* space) {
    if (PyUnicode_GET_LENGTH(space) == 0)
        return check(PyUnicode_FromString("the global namespace"));
    return check(PyUnicode_FromFormat("namespace %R", space));
}

}  // namespace

PyType_Spec registration_spec = {
    "treeops._C.Registration",
    sizeof(Registration),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    registration_slots,
};

Registration* Namespace::find(PyTypeObject* type) const {
    PyObject* found = PyDict_GetItemWithError(types_.get(), reinterpret_cast<PyObject*>(type));
    if (found == nullptr && PyErr_Occurred()) throw PythonError{};
    return reinterpret_cast<Registration*>(found);
}

int Namespace::traverse(visitproc visit, void* arg) {
    Py_VISIT(types_.get());
    return kinds_.traverse(visit, arg);
}

void Namespace::clear() {
    kinds_.clear();
    if (types_) PyDict_Clear(types_.get());
}

void Registry::initialize() {
    index_ = check(PyDict_New());
    Ref name = check(PyUnicode_FromString(""));
    ensure(name.get());
}

Namespace* Registry::find(PyObject* name) {
    PyObject* position = PyDict_GetItemWithError(index_.get(), name);
    if (position != nullptr) return spaces_[PyLong_AsSize_t(position)].get();
    if (PyErr_Occurred()) throw PythonError{};
    return nullptr;
}

Namespace& Registry::ensure(PyObject* name) {
    if (Namespace* found = find(name)) return *found;
    Ref next = check(PyLong_FromSize_t(spaces_.size()));
    spaces_.push_back(std::make_unique<Namespace>(check(PyDict_New())));
    if (PyDict_SetItem(index_.get(), name, next.get()) < 0) {
        spaces_.pop_back();
        throw PythonError{};
    }
    return *spaces_.back();
}

Namespace& Registry::lookup(PyObject* name) {
    if (PyUnicode_GET_LENGTH(name) == 0) return global();
    Namespace* found = find(name);
    return found != nullptr ? *found : global();
}

void Registry::add(State& state, PyTypeObject* type, PyObject* flatten_func,
                   PyObject* unflatten_func, PyObject* entry_type, PyObject* space) {
    if (is_builtin_container(state, type)) {
        raise(PyExc_ValueError,
              "register_pytree_node: expected a type treeops does not know yet, got the built-in "
              "container %S; it cannot be re-registered",
              type_name(type).get());
    }
    Namespace& target = ensure(space);
    if (target.find(type) != nullptr) {
        raise(PyExc_ValueError,
              "register_pytree_node: expected a type not yet registered, got %S, which is already "
              "registered in %U; call unregister_pytree_node first to replace it",
              type_name(type).get(), space_text(space).get());
    }
    auto* registration = PyObject_GC_New(
        Registration, reinterpret_cast<PyTypeObject*>(state.registration_type.get()));
    Ref owner = check(reinterpret_cast<PyObject*>(registration));
    registration->type = type;
    registration->flatten_func = new_reference(flatten_func);
    registration->unflatten_func = new_reference(unflatten_func);
    registration->entry_type = new_reference(entry_type);
    registration->space = new_reference(space);
    Py_INCREF(type);
    PyObject_GC_Track(owner.get());
    check_status(PyDict_SetItem(target.types(), reinterpret_cast<PyObject*>(type), owner.get()));
    invalidate();
}

Ref Registry::remove(State& state, PyTypeObject* type, PyObject* space) {
    if (is_builtin_container(state, type)) {
        raise(PyExc_ValueError,
              "unregister_pytree_node: expected a registered custom type, got the built-in "
              "container %S; it cannot be unregistered",
              type_name(type).get());
    }
    Namespace* target = find(space);
    Ref found = target == nullptr
                    ? Ref()
                    : Ref::borrow(reinterpret_cast<PyObject*>(target->find(type)));
    if (!found) {
        raise(PyExc_ValueError,
              "unregister_pytree_node: expected a type registered in %U, got %S, which is not",
              space_text(space).get(), type_name(type).get());
    }
    invalidate();  // before the registry drops what the caches borrow
    check_status(PyDict_DelItem(target->types(), reinterpret_cast<PyObject*>(type)));
    return found;
}

void Registry::invalidate() {
    ++epoch_;
    for (auto& space : spaces_) space->kinds().clear();
}

void Registry::forget(PyObject* watcher) {
    for (auto& space : spaces_) space->kinds().forget(watcher);
}

int Registry::traverse(visitproc visit, void* arg) {
    Py_VISIT(index_.get());
    for (auto& space : spaces_) {
        if (const int status = space->traverse(visit, arg)) return status;
    }
    return 0;
}

void Registry::clear() {
    for (auto& space : spaces_) space->clear();
}

bool is_builtin_container(State& state, PyTypeObject* type) {
    return type == &PyTuple_Type || type == &PyList_Type || type == &PyDict_Type ||
           type == &PyODict_Type || type == Py_TYPE(Py_None) ||
           type == reinterpret_cast<PyTypeObject*>(state.defaultdict_type.get()) ||
           type == reinterpret_cast<PyTypeObject*>(state.deque_type.get());
}

}  // namespace treeops
