// SPDX-License-Identifier: Apache-2.0
// The keys of a dict node: made once per distinct key sequence, shared by treespecs.
#pragma once

#include <array>
#include <memory>

#include "python.h"

namespace treeops {

struct State;

// Immutable once made, but for what is worked out when first needed: the sorted half by a dict that
// is flattened, the blank by a dict that is built.
struct KeyShape {
    PyObject_HEAD PyObject* keys;  // tuple, in the mapping's own order
    PyObject* sorted_keys;         // tuple, or NULL while no dict has asked; may be `keys` itself
    // Both NULL when the keys are in sorted order already.
    std::uint32_t* order;  // order[j]: position in `keys` of the j-th sorted key
    std::uint32_t* rank;   // rank[i]: position in `sorted_keys` of the i-th key
    PyObject* blank;       // dict from each key to None, or NULL

    Py_ssize_t size() const { return PyTuple_GET_SIZE(keys); }
    PyObject* const* key_data() const { return reinterpret_cast<PyTupleObject*>(keys)->ob_item; }
};

extern PyType_Spec key_shape_spec;

// Finds shapes by the *addresses* of their keys first, then by their values: a table entry holds
// its keys, so an address cannot become another key's. Only exact str and int keys are kept here:
// they cannot change, and comparing them runs no code.
class ShapeTable {
  public:
    static std::uint64_t start(std::size_t size) { return size * kMultiplier + 1; }
    static std::uint64_t mix(std::uint64_t hash, PyObject* key) {
        hash = (hash ^ reinterpret_cast<std::uintptr_t>(key) >> 4) * kMultiplier;
        return hash ^ hash >> 32;
    }

    void initialize() { by_value_ = check(PyDict_New()); }

    // The shape of `size` keys whose addresses hash to `hash`, with its sorted half if `sorted`.
    // Its keys equal the given ones, but need not be the same objects.
    Ref find_or_make(State& state, PyObject* const* keys, std::size_t size, std::uint64_t hash,
                     bool sorted);
    int traverse(visitproc visit, void* arg);
    void clear();

  private:
    struct Entry {
        std::uint64_t hash = 0;
        Ref keys;   // the tuple whose addresses were hashed
        Ref shape;  // KeyShape
        bool matches(PyObject* const* other, std::size_t size, std::uint64_t other_hash) const;
    };
    static constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15u;
    static constexpr std::size_t kSets = 512;
    static constexpr std::size_t kWays = 2;
    static constexpr std::size_t kMaxKeys = 1024;       // longer shapes are not kept
    static constexpr std::size_t kMaxHeld = 1u << 15;  // weights in all; then everything is dropped
    static constexpr std::size_t kShapeWeight = 32;    // of a shape, beside 1 for each key

    std::array<std::array<Entry, kWays>, kSets> by_address_;
    Ref by_value_;  // dict: tuple of keys -> KeyShape
    std::size_t held_ = 0;  // weights added since the table was empty
};

// A shape made from a tuple of keys (pickle, constructors).
Ref make_shape(State& state, PyObject* keys_tuple, bool sorted);

// The dict from each key to None, in the keys' own order (borrowed).
PyObject* blank_of(KeyShape* shape);

}  // namespace treeops
