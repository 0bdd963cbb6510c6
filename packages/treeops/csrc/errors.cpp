// SPDX-License-Identifier: Apache-2.0
#include "errors.h"

#include <cstdarg>

namespace treeops {

void raise(PyObject* exception, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    PyErr_FormatV(exception, format, arguments);
    va_end(arguments);
    throw PythonError{};
}

void raise_internal(const char* condition, const char* file, int line) {
    raise(PyExc_SystemError, "treeops: internal check failed: %s (%s:%d); please report this",
          condition, file, line);
}

Ref attribute(PyObject* object, const char* name) {
    Ref interned = check(PyUnicode_InternFromString(name));
    return check(PyObject_GetAttr(object, interned.get()));
}

Ref find_attribute(PyObject* object, const char* name) {
    Ref interned = check(PyUnicode_InternFromString(name));
    Ref value = Ref::steal(PyObject_GetAttr(object, interned.get()));
    if (!value) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw PythonError{};
        PyErr_Clear();
    }
    return value;
}

Ref type_name(PyTypeObject* type) {
    PyObject* object = reinterpret_cast<PyObject*>(type);
    Ref qualname = attribute(object, "__qualname__");
    if (!PyUnicode_Check(qualname.get())) return check(PyUnicode_FromString(type->tp_name));
    Ref module = attribute(object, "__module__");
    if (!PyUnicode_Check(module.get()) ||
        PyUnicode_CompareWithASCIIString(module.get(), "builtins") == 0) {
        return qualname;
    }
    return check(PyUnicode_FromFormat("%U.%S", module.get(), qualname.get()));
}

Ref describe_object(PyObject* object) {
    if (object == Py_None) return check(PyUnicode_FromString("None"));
    Ref name = type_name(Py_TYPE(object));
    if (PyTuple_Check(object) || PyList_Check(object) || PyDict_Check(object)) {
        const Py_ssize_t size = PyObject_Size(object);
        check_status(size < 0 ? -1 : 0);
        return check(PyUnicode_FromFormat("%S of %zd", name.get(), size));
    }
    return name;
}

}  // namespace treeops
