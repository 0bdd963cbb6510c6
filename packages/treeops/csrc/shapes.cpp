// SPDX-License-Identifier: Apache-2.0
#include "shapes.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "errors.h"
#include "state.h"

namespace treeops {

namespace {

KeyShape* as_shape(PyObject* object) { return reinterpret_cast<KeyShape*>(object); }

// No tp_clear: tuples are immutable, whatever a cycle through a key also passes can be cleared.
int key_shape_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(as_shape(self)->keys);
    Py_VISIT(as_shape(self)->sorted_keys);
    Py_VISIT(as_shape(self)->blank);
    return 0;
}

void key_shape_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(as_shape(self)->keys);
    Py_XDECREF(as_shape(self)->sorted_keys);
    Py_XDECREF(as_shape(self)->blank);
    PyMem_Free(as_shape(self)->order);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

PyType_Slot key_shape_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(key_shape_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(key_shape_traverse)},
    {0, nullptr},
};

bool all_exact_str(PyObject* keys) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(keys); ++i) {
        if (!PyUnicode_CheckExact(PyTuple_GET_ITEM(keys, i))) return false;
    }
    return true;
}

bool all_plain(PyObject* keys) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(keys); ++i) {
        PyObject* key = PyTuple_GET_ITEM(keys, i);
        if (!PyUnicode_CheckExact(key) && !PyLong_CheckExact(key)) return false;
    }
    return true;
}

// The first eight characters as a number, so that most comparisons need no call. Only used when
// all keys are one byte per character; zeros pad, which ties with a NUL character: hence the call.
std::uint64_t prefix_of(PyObject* key) {
    unsigned char bytes[8] = {};
    const auto length = std::min<Py_ssize_t>(PyUnicode_GET_LENGTH(key), 8);
    std::memcpy(bytes, PyUnicode_1BYTE_DATA(key), static_cast<std::size_t>(length));
    std::uint64_t prefix = 0;
    for (const unsigned char byte : bytes) prefix = prefix << 8 | byte;
    return prefix;
}

bool all_one_byte(PyObject* keys) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(keys); ++i) {
        if (PyUnicode_KIND(PyTuple_GET_ITEM(keys, i)) != PyUnicode_1BYTE_KIND) return false;
    }
    return true;
}

using Order = std::vector<std::uint32_t>;

Order sort_str_keys(PyObject* keys) {
    struct SortKey {
        std::uint64_t prefix;
        std::uint32_t index;
    };
    const auto size = static_cast<std::size_t>(PyTuple_GET_SIZE(keys));
    const bool prefixed = all_one_byte(keys);
    std::vector<SortKey> sort_keys(size);
    for (std::size_t i = 0; i < size; ++i) {
        sort_keys[i] = {prefixed ? prefix_of(PyTuple_GET_ITEM(keys, i)) : 0,
                        static_cast<std::uint32_t>(i)};
    }
    // Exact str objects of one dict differ from each other, so no tie is left to keep stable.
    const auto less = [keys](const SortKey& left, const SortKey& right) {
        if (left.prefix != right.prefix) return left.prefix < right.prefix;
        return PyUnicode_Compare(PyTuple_GET_ITEM(keys, left.index),
                                 PyTuple_GET_ITEM(keys, right.index)) < 0;
    };
    if (!std::is_sorted(sort_keys.begin(), sort_keys.end(), less)) {
        std::sort(sort_keys.begin(), sort_keys.end(), less);
    }
    Order order(size);
    for (std::size_t i = 0; i < size; ++i) order[i] = sort_keys[i].index;
    return order;
}

// The positions in `keys` of the objects in `sorted`, a rearrangement of it, by address.
Order positions_of(PyObject* keys, PyObject* const* sorted) {
    const auto size = static_cast<std::size_t>(PyTuple_GET_SIZE(keys));
    using Located = std::pair<PyObject*, std::uint32_t>;
    std::vector<Located> from(size), to(size);
    for (std::size_t i = 0; i < size; ++i) {
        const auto index = static_cast<std::uint32_t>(i);
        from[i] = {PyTuple_GET_ITEM(keys, index), index};
        to[i] = {sorted[i], index};
    }
    std::sort(from.begin(), from.end());
    std::sort(to.begin(), to.end());
    Order order(size);
    for (std::size_t i = 0; i < size; ++i) {
        TREEOPS_CHECK(from[i].first == to[i].first);
        order[to[i].second] = from[i].second;
    }
    return order;
}

// Sorts in place; false if the elements cannot be compared (the list is then in no useful order).
bool try_sort(PyObject* list) {
    if (PyList_Sort(list) == 0) return true;
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw PythonError{};
    PyErr_Clear();
    return false;
}

// Any keys: by value; if some cannot be compared, by (qualified type name, value); if that fails
// too, as they are.
Order sort_any_keys(PyObject* keys) {
    const Py_ssize_t size = PyTuple_GET_SIZE(keys);
    Ref list = check(PySequence_List(keys));
    if (try_sort(list.get())) {
        TREEOPS_CHECK(PyList_GET_SIZE(list.get()) == size);
        return positions_of(keys, reinterpret_cast<PyListObject*>(list.get())->ob_item);
    }
    Ref named = check(PyList_New(0));
    for (Py_ssize_t i = 0; i < size; ++i) {
        PyObject* key = PyTuple_GET_ITEM(keys, i);
        PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(key));
        Ref module = attribute(type, "__module__");
        Ref qualname = attribute(type, "__qualname__");
        Ref name = check(PyUnicode_FromFormat("%S.%S", module.get(), qualname.get()));
        Ref pair = check(PyTuple_Pack(2, name.get(), key));
        check_status(PyList_Append(named.get(), pair.get()));
    }
    if (try_sort(named.get())) {
        TREEOPS_CHECK(PyList_GET_SIZE(named.get()) == size);
        std::vector<PyObject*> sorted;
        for (Py_ssize_t i = 0; i < size; ++i) {
            sorted.push_back(PyTuple_GET_ITEM(PyList_GET_ITEM(named.get(), i), 1));
        }
        return positions_of(keys, sorted.data());
    }
    Order order(static_cast<std::size_t>(size));
    std::iota(order.begin(), order.end(), 0u);
    return order;
}

void add_sorted_half(KeyShape* shape) {
    const auto size = static_cast<std::size_t>(shape->size());
    const Order order =
        all_exact_str(shape->keys) ? sort_str_keys(shape->keys) : sort_any_keys(shape->keys);
    // Sorting may have run code that worked this out meanwhile.
    if (shape->sorted_keys != nullptr) return;
    bool identity = true;
    for (std::size_t i = 0; i < size; ++i) identity = identity && order[i] == i;
    if (identity) {
        shape->sorted_keys = new_reference(shape->keys);
        return;
    }
    auto* memory = static_cast<std::uint32_t*>(PyMem_Malloc(2 * size * sizeof(std::uint32_t)));
    if (memory == nullptr) throw std::bad_alloc();
    PyObject* sorted_keys = PyTuple_New(shape->size());
    if (sorted_keys == nullptr) {
        PyMem_Free(memory);
        throw PythonError{};
    }
    shape->order = memory;
    shape->rank = memory + size;
    for (std::size_t j = 0; j < size; ++j) {
        shape->order[j] = order[j];
        shape->rank[order[j]] = static_cast<std::uint32_t>(j);
        PyTuple_SET_ITEM(sorted_keys, static_cast<Py_ssize_t>(j),
                         new_reference(PyTuple_GET_ITEM(shape->keys, order[j])));
    }
    shape->sorted_keys = sorted_keys;
}

}  // namespace

PyType_Spec key_shape_spec = {
    "treeops._C.KeyShape",
    sizeof(KeyShape),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    key_shape_slots,
};

Ref make_shape(State& state, PyObject* keys_tuple, bool sorted) {
    auto* shape =
        PyObject_GC_New(KeyShape, reinterpret_cast<PyTypeObject*>(state.key_shape_type.get()));
    Ref owner = check(reinterpret_cast<PyObject*>(shape));
    shape->keys = new_reference(keys_tuple);
    shape->sorted_keys = nullptr;
    shape->order = nullptr;
    shape->rank = nullptr;
    shape->blank = nullptr;
    PyObject_GC_Track(owner.get());
    if (sorted) add_sorted_half(shape);
    return owner;
}

PyObject* blank_of(KeyShape* shape) {
    if (shape->blank == nullptr) {
        Ref blank = check(PyDict_New());
        for (Py_ssize_t i = 0; i < shape->size(); ++i) {
            check_status(PyDict_SetItem(blank.get(), PyTuple_GET_ITEM(shape->keys, i), Py_None));
        }
        // Hashing may have run code that made one meanwhile.
        if (shape->blank == nullptr) shape->blank = blank.release();
    }
    return shape->blank;
}

bool ShapeTable::Entry::matches(PyObject* const* other, std::size_t size,
                                std::uint64_t other_hash) const {
    if (hash != other_hash || !keys) return false;
    if (static_cast<std::size_t>(PyTuple_GET_SIZE(keys.get())) != size) return false;
    for (std::size_t i = 0; i < size; ++i) {
        if (PyTuple_GET_ITEM(keys.get(), i) != other[i]) return false;
    }
    return true;
}

Ref ShapeTable::find_or_make(State& state, PyObject* const* keys, std::size_t size,
                             std::uint64_t hash, bool sorted) {
    auto& set = by_address_[hash % kSets];
    for (Entry& entry : set) {
        if (!entry.matches(keys, size, hash)) continue;
        Ref found = Ref::borrow(entry.shape.get());
        if (sorted && as_shape(found.get())->sorted_keys == nullptr) {
            add_sorted_half(as_shape(found.get()));
        }
        return found;
    }
    // The allocation may collect garbage, and that may run code which empties the caller's dict.
    References held;
    held.reserve(size);
    for (std::size_t i = 0; i < size; ++i) held.push_borrowed(keys[i]);
    Ref tuple = check(PyTuple_New(static_cast<Py_ssize_t>(size)));
    for (std::size_t i = 0; i < size; ++i) {
        PyTuple_SET_ITEM(tuple.get(), static_cast<Py_ssize_t>(i), held[i]);
    }
    held.disown();
    if (size > kMaxKeys || !all_plain(tuple.get())) return make_shape(state, tuple.get(), sorted);

    Ref shape = Ref::borrow(PyDict_GetItemWithError(by_value_.get(), tuple.get()));
    if (!shape) {
        if (PyErr_Occurred()) throw PythonError{};
        shape = make_shape(state, tuple.get(), sorted);
        held_ += size + kShapeWeight;
        if (held_ > kMaxHeld) {
            clear();
            held_ = size + kShapeWeight;
        }
        check_status(PyDict_SetItem(by_value_.get(), tuple.get(), shape.get()));
    } else if (sorted && as_shape(shape.get())->sorted_keys == nullptr) {
        add_sorted_half(as_shape(shape.get()));
    }
    // The newer entry first; the eldest goes.
    Entry evicted = std::move(set[1]);
    set[1] = std::move(set[0]);
    set[0] = Entry{hash, std::move(tuple), Ref::borrow(shape.get())};
    return shape;
}

int ShapeTable::traverse(visitproc visit, void* arg) {
    for (auto& set : by_address_) {
        for (Entry& entry : set) {
            Py_VISIT(entry.keys.get());
            Py_VISIT(entry.shape.get());
        }
    }
    Py_VISIT(by_value_.get());
    return 0;
}

void ShapeTable::clear() {
    for (auto& set : by_address_) {
        for (Entry& entry : set) Entry dropped = std::move(entry);
    }
    if (by_value_) PyDict_Clear(by_value_.get());
}

}  // namespace treeops
