// SPDX-License-Identifier: Apache-2.0
// The functions that are called once per type, bound by pybind11.
#include <pybind11/pybind11.h>

#include "errors.h"
#include "module.h"
#include "state.h"

namespace py = pybind11;

namespace treeops {

namespace {

template <typename Body>
py::object with_python_errors(Body&& body) {
    try {
        return py::reinterpret_steal<py::object>(body().release());
    } catch (const PythonError&) {
        throw py::error_already_set();
    }
}

State& alive(const std::shared_ptr<State>& state) {
    if (state->module == nullptr) {
        raise(PyExc_RuntimeError,
              "treeops: expected the module of this function to be loaded, got one that is gone; "
              "import treeops again");
    }
    return *state;
}

Ref registered_parts(Registration* registration) {
    return check(PyTuple_Pack(4, registration->flatten_func, registration->unflatten_func,
                              registration->entry_type, registration->space));
}

void bind_functions(py::module_ module, const std::shared_ptr<State>& state) {
    module.def(
        "register_node",
        [state](const py::type& cls, const py::function& flatten_func,
                const py::object& unflatten_func, const py::type& entry_type,
                const py::str& space) {
            with_python_errors([&] {
                alive(state).registry.add(*state, reinterpret_cast<PyTypeObject*>(cls.ptr()),
                                          flatten_func.ptr(), unflatten_func.ptr(),
                                          entry_type.ptr(), space.ptr());
                return Ref::borrow(Py_None);
            });
        },
        py::arg("cls"), py::arg("flatten_func"), py::arg("unflatten_func"),
        py::arg("path_entry_type"), py::arg("namespace"), py::pos_only(),
        "Registers a custom node type; namespace '' is the global one.");
    module.def(
        "unregister_node",
        [state](const py::type& cls, const py::str& space) {
            return with_python_errors([&] {
                Ref removed = alive(state).registry.remove(
                    *state, reinterpret_cast<PyTypeObject*>(cls.ptr()), space.ptr());
                auto* registration = reinterpret_cast<Registration*>(removed.get());
                return registered_parts(registration);
            });
        },
        py::arg("cls"), py::arg("namespace"), py::pos_only(),
        "Removes a custom node type; returns its flatten and unflatten functions, entry type and "
        "namespace.");
    module.def(
        "find_node",
        [state](const py::type& cls, const py::str& space) {
            return with_python_errors([&] {
                auto* type = reinterpret_cast<PyTypeObject*>(cls.ptr());
                Registry& registry = alive(state).registry;
                Registration* found = registry.lookup(space.ptr()).find(type);
                if (found == nullptr) found = registry.global().find(type);
                return found == nullptr ? Ref::borrow(Py_None) : registered_parts(found);
            });
        },
        py::arg("cls"), py::arg("namespace"), py::pos_only(),
        "What unregister_node would return, the global namespace included; None if there is "
        "nothing.");
    module.def(
        "registered_classes",
        [state](const py::str& space) {
            return with_python_errors([&] {
                Registry& registry = alive(state).registry;
                Ref classes = check(PyDict_Copy(registry.global().types()));
                check_status(PyDict_Update(classes.get(), registry.lookup(space.ptr()).types()));
                return check(PyDict_Keys(classes.get()));
            });
        },
        py::arg("namespace"), py::pos_only(),
        "The custom node types of a namespace and the global one.");
    module.def(
        "set_dict_insertion_ordered",
        [state](bool mode, const py::str& space) {
            return with_python_errors([&] {
                Registry& registry = alive(state).registry;
                Namespace* target =
                    mode ? &registry.ensure(space.ptr()) : registry.find(space.ptr());
                const bool old =
                    target != nullptr && std::exchange(target->insertion_ordered, mode);
                return Ref::borrow(old ? Py_True : Py_False);
            });
        },
        py::arg("mode"), py::arg("namespace"), py::pos_only(),
        "Whether dicts in a namespace keep their own order; returns what it was.");
    module.def(
        "is_dict_insertion_ordered",
        [state](const py::str& space) {
            return with_python_errors([&] {
                Registry& registry = alive(state).registry;
                const bool mode = registry.keeps_order(registry.lookup(space.ptr()));
                return Ref::borrow(mode ? Py_True : Py_False);
            });
        },
        py::arg("namespace"), py::pos_only(), "Whether dicts in a namespace keep their own order.");
    module.def(
        "is_namedtuple_class",
        [](const py::handle& cls) {
            return with_python_errors([&] {
                const bool answer = PyType_Check(cls.ptr()) &&
                                    is_namedtuple_class(reinterpret_cast<PyTypeObject*>(cls.ptr()));
                return Ref::borrow(answer ? Py_True : Py_False);
            });
        },
        py::arg("cls"), py::pos_only(), "Whether a class is a namedtuple class.");
    module.def(
        "is_structseq_class",
        [](const py::handle& cls) {
            return with_python_errors([&] {
                const bool answer = PyType_Check(cls.ptr()) &&
                                    is_structseq_class(reinterpret_cast<PyTypeObject*>(cls.ptr()));
                return Ref::borrow(answer ? Py_True : Py_False);
            });
        },
        py::arg("cls"), py::pos_only(),
        "Whether a class is a C struct sequence, as time.struct_time.");
}

}  // namespace

void bind_registry(PyObject* module_object, const std::shared_ptr<State>& state) {
    try {
        py::detail::get_internals();  // pybind11's own set-up, before its first use
        bind_functions(py::reinterpret_borrow<py::module_>(module_object), state);
    } catch (py::error_already_set& error) {
        error.restore();
        throw PythonError{};
    }
}

}  // namespace treeops
