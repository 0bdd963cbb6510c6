// SPDX-License-Identifier: Apache-2.0
// Two kinds of check: raise() is for the user's mistakes, TREEOPS_CHECK for our own.
#pragma once

#include <exception>
#include <new>

#include "python.h"

namespace treeops {

// Sets `exception` with a PyUnicode_FromFormat message and throws PythonError.
[[noreturn]] void raise(PyObject* exception, const char* format, ...);

[[noreturn]] void raise_internal(const char* condition, const char* file, int line);

#define TREEOPS_CHECK(condition)                                                     \
    do {                                                                             \
        if (!(condition)) ::treeops::raise_internal(#condition, __FILE__, __LINE__); \
    } while (false)

// Runs `body` at a C entry point: C++ exceptions become Python errors and a `failure` result.
template <typename Result, typename Body>
Result guarded(Result failure, Body&& body) noexcept {
    try {
        return body();
    } catch (const PythonError&) {
        return failure;
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
        return failure;
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_SystemError, error.what());
        return failure;
    }
}

// getattr(object, name). The name is interned: the interpreter's method cache, which is looked up
// by address, would otherwise fill with copies of it.
Ref attribute(PyObject* object, const char* name);

// As attribute(), but empty if there is none.
Ref find_attribute(PyObject* object, const char* name);

// "list", "collections.deque", "torch.nn.parameter.Parameter": a type as users write it.
Ref type_name(PyTypeObject* type);

// What an object is, never what it holds: "list of 2", "None", "Tensor".
Ref describe_object(PyObject* object);

}  // namespace treeops
