// SPDX-License-Identifier: Apache-2.0
#include "tree_iterator.h"

#include <memory>
#include <vector>

#include "errors.h"
#include "level.h"
#include "state.h"

namespace treeops {

namespace {

struct Pending {
    PyObject* object;  // owned
    int depth;
};

struct TreeIterator {
    PyObject_HEAD std::vector<Pending>* pending;  // the next one last
    PyObject* is_leaf;                            // or NULL
    PyObject* space;
    bool none_is_leaf;
};

TreeIterator* as_iterator(PyObject* object) { return reinterpret_cast<TreeIterator*>(object); }

int iterator_traverse(PyObject* self, visitproc visit, void* arg) {
    TreeIterator* iterator = as_iterator(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(iterator->is_leaf);
    for (const Pending& next : *iterator->pending) Py_VISIT(next.object);
    return 0;
}

int iterator_clear(PyObject* self) {
    TreeIterator* iterator = as_iterator(self);
    while (!iterator->pending->empty()) {  // dropping one may run code that sees the rest
        PyObject* last = iterator->pending->back().object;
        iterator->pending->pop_back();
        Py_DECREF(last);
    }
    Py_CLEAR(iterator->is_leaf);
    return 0;
}

void iterator_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_TRASHCAN_BEGIN(self, iterator_dealloc) iterator_clear(self);
    delete as_iterator(self)->pending;
    Py_XDECREF(as_iterator(self)->space);
    PyObject_GC_Del(self);
    Py_DECREF(type);
    Py_TRASHCAN_END
}

// The next leaf, or an empty reference at the end. The state is whole whenever code may run: it may
// advance this very iterator.
Ref next_leaf(State& state, TreeIterator* self) {
    const char* who = "tree_iter";
    while (!self->pending->empty()) {
        const int depth = self->pending->back().depth;
        Ref object = Ref::steal(self->pending->back().object);
        self->pending->pop_back();
        Ref is_leaf = Ref::borrow(self->is_leaf);
        const FlattenOptions options{is_leaf.get(), self->none_is_leaf, self->space};
        if (options.is_leaf != nullptr && is_leaf_object(state, object.get(), options)) {
            return object;
        }
        Level level;
        References children;
        if (!open_level(state, who, object.get(), options, level, children)) return object;
        if (children.size() == 0) continue;
        if (depth >= kMaxRecursionDepth) {
            raise(PyExc_RecursionError,
                  "%s: expected a tree at most %d deep, got a deeper one; it may contain itself",
                  who, kMaxRecursionDepth);
        }
        self->pending->reserve(self->pending->size() + children.size());
        for (std::size_t i = children.size(); i > 0; --i) {
            self->pending->push_back(Pending{children[i - 1], depth + 1});
        }
        children.disown();
    }
    return Ref();
}

PyObject* iterator_next(PyObject* self) {
    return guarded<PyObject*>(
        nullptr, [&] { return next_leaf(state_of_instance(self), as_iterator(self)).release(); });
}

PyType_Slot iterator_slots[] = {
    {Py_tp_doc, const_cast<char*>("The leaves of a tree, one at a time; made by tree_iter.")},
    {Py_tp_dealloc, reinterpret_cast<void*>(iterator_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(iterator_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(iterator_clear)},
    {Py_tp_iter, reinterpret_cast<void*>(PyObject_SelfIter)},
    {Py_tp_iternext, reinterpret_cast<void*>(iterator_next)},
    {0, nullptr},
};

}  // namespace

PyType_Spec tree_iterator_spec = {
    "treeops.PyTreeIter",
    sizeof(TreeIterator),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    iterator_slots,
};

Ref make_tree_iterator(State& state, PyObject* tree, const FlattenOptions& options) {
    auto pending = std::make_unique<std::vector<Pending>>();
    pending->reserve(8);
    auto* iterator = PyObject_GC_New(
        TreeIterator, reinterpret_cast<PyTypeObject*>(state.tree_iterator_type.get()));
    Ref owner = check(reinterpret_cast<PyObject*>(iterator));
    pending->push_back(Pending{new_reference(tree), 0});
    iterator->pending = pending.release();
    iterator->is_leaf = Ref::borrow(options.is_leaf).release();
    iterator->space = new_reference(options.space);
    iterator->none_is_leaf = options.none_is_leaf;
    PyObject_GC_Track(owner.get());
    return owner;
}

}  // namespace treeops
