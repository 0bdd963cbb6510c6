// SPDX-License-Identifier: Apache-2.0
// Custom node types by namespace; lookups fall back to the global namespace "".
#pragma once

#include <memory>
#include <vector>

#include "kinds.h"
#include "python.h"

namespace treeops {

// A Python object, because treespecs and the registry share it and the collector must see it.
struct Registration {
    PyObject_HEAD PyTypeObject* type;
    PyObject* flatten_func;
    PyObject* unflatten_func;
    PyObject* entry_type;  // class of the steps of accessors
    PyObject* space;       // name of the namespace
};

extern PyType_Spec registration_spec;

class Namespace {
  public:
    explicit Namespace(Ref types) : types_(std::move(types)) {}

    Registration* find(PyTypeObject* type) const;  // borrowed, NULL if absent
    PyObject* types() const { return types_.get(); }
    KindCache& kinds() { return kinds_; }
    bool insertion_ordered = false;  // of dicts; that of the global namespace counts everywhere
    int traverse(visitproc visit, void* arg);
    void clear();

  private:
    Ref types_;  // dict: type -> Registration
    KindCache kinds_;
};

class Registry {
  public:
    void initialize();

    const Namespace& global() const { return *spaces_.front(); }
    Namespace& global() { return *spaces_.front(); }
    // The namespace called `name`, or the global one if nothing was ever registered there.
    Namespace& lookup(PyObject* name);

    void add(State& state, PyTypeObject* type, PyObject* flatten_func, PyObject* unflatten_func,
             PyObject* entry_type, PyObject* space);
    Ref remove(State& state, PyTypeObject* type, PyObject* space);  // the Registration

    unsigned long epoch() const { return epoch_; }
    void forget(PyObject* watcher);
    int traverse(visitproc visit, void* arg);
    void clear();

    // The namespace called `name`; NULL if nothing was ever registered there.
    Namespace* find(PyObject* name);
    // The same, made if there was none.
    Namespace& ensure(PyObject* name);
    // Whether the children of a dict stand in its own order.
    bool keeps_order(const Namespace& space) const {
        return space.insertion_ordered || global().insertion_ordered;
    }
    // Whether treespecs name this namespace for its order, whatever nodes they have.
    bool names_order(const Namespace& space) const {
        return space.insertion_ordered && &space != &global();
    }

  private:
    void invalidate();

    Ref index_;  // dict: name -> position in spaces_
    std::vector<std::unique_ptr<Namespace>> spaces_;
    unsigned long epoch_ = 0;
};

// Whether `type` is one of the containers that can neither be registered nor unregistered.
bool is_builtin_container(State& state, PyTypeObject* type);

}  // namespace treeops
