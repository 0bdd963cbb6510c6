// SPDX-License-Identifier: Apache-2.0
// Owned references and reference buffers: every strong reference in this package has an owner.
#pragma once

#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include <Python.h>
#include <absl/container/inlined_vector.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace treeops {

// Thrown when the interpreter's error indicator is set; entry points turn it into a NULL result.
struct PythonError {};

// One owned reference.
class Ref {
  public:
    Ref() = default;
    Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
    Ref& operator=(Ref&& other) noexcept {
        PyObject* old = std::exchange(object_, std::exchange(other.object_, nullptr));
        Py_XDECREF(old);
        return *this;
    }
    Ref(const Ref&) = delete;
    Ref& operator=(const Ref&) = delete;
    ~Ref() { Py_XDECREF(object_); }

    static Ref steal(PyObject* object) { return Ref(object); }
    static Ref borrow(PyObject* object) {
        Py_XINCREF(object);
        return Ref(object);
    }

    PyObject* get() const { return object_; }
    PyObject* release() { return std::exchange(object_, nullptr); }
    explicit operator bool() const { return object_ != nullptr; }

  private:
    explicit Ref(PyObject* object) : object_(object) {}
    PyObject* object_ = nullptr;
};

// Owns the result of a C API call that returns a new reference, or throws its error.
inline Ref check(PyObject* new_reference) {
    if (new_reference == nullptr) throw PythonError{};
    return Ref::steal(new_reference);
}

inline void check_status(int status) {
    if (status < 0) throw PythonError{};
}

inline PyObject* new_reference(PyObject* object) {
    Py_INCREF(object);
    return object;
}

// A stack of owned references (NULL entries are allowed).
class References {
  public:
    References() = default;
    References(const References&) = delete;
    References& operator=(const References&) = delete;
    References(References&&) = default;
    ~References() { truncate(0); }

    void push_borrowed(PyObject* object) {
        items_.push_back(object);
        Py_INCREF(object);
    }
    // `reference` is owned by the caller until the push has succeeded.
    void push_stolen(Ref reference) {
        items_.push_back(reference.get());
        reference.release();
    }
    void grow_null(std::size_t count) { items_.resize(items_.size() + count, nullptr); }

    // Drops the references past `size`; they may run arbitrary code, so the stack is cut first.
    void truncate(std::size_t size) {
        while (items_.size() > size) {
            PyObject* last = items_.back();
            items_.pop_back();
            Py_XDECREF(last);
        }
    }
    // Forgets the references without dropping them: someone else owns them now.
    void disown() { items_.clear(); }

    void reserve(std::size_t count) {
        if (count > items_.capacity()) items_.reserve(std::max(count, 2 * items_.capacity()));
    }
    std::size_t size() const { return items_.size(); }
    PyObject** data() { return items_.data(); }
    PyObject*& operator[](std::size_t index) { return items_[index]; }

  private:
    absl::InlinedVector<PyObject*, 64> items_;
};

// A list or a tuple takes over all references at the end: half filled it could be seen, and read, by
// code that the garbage collector runs.
inline Ref take_as_list(References& items) {
    Ref list = check(PyList_New(static_cast<Py_ssize_t>(items.size())));
    std::copy_n(items.data(), items.size(), reinterpret_cast<PyListObject*>(list.get())->ob_item);
    items.disown();
    return list;
}
inline Ref take_as_tuple(References& items) {
    Ref tuple = check(PyTuple_New(static_cast<Py_ssize_t>(items.size())));
    std::copy_n(items.data(), items.size(), reinterpret_cast<PyTupleObject*>(tuple.get())->ob_item);
    items.disown();
    return tuple;
}

}  // namespace treeops
