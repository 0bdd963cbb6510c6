// SPDX-License-Identifier: Apache-2.0
// From a Python type to the kind of tree node its instances are, cached per namespace.
#pragma once

#include <array>

#include "python.h"

namespace treeops {

struct Registration;
struct State;
class Namespace;

// The numbers are stored in pickles and are OpTree's.
enum class NodeKind : std::uint8_t {
    kCustom = 0,
    kLeaf = 1,
    kNone = 2,
    kTuple = 3,
    kList = 4,
    kDict = 5,
    kNamedTuple = 6,
    kOrderedDict = 7,
    kDefaultDict = 8,
    kDeque = 9,
    kStructSequence = 10,
};

struct KindEntry {
    PyTypeObject* type = nullptr;  // borrowed: `watcher` empties the entry when the type dies
    PyObject* watcher = nullptr;   // owned weak reference; NULL for static types
    Registration* registration = nullptr;  // borrowed from the registry, which clears the caches
    NodeKind kind = NodeKind::kLeaf;
    // Whether instances of a namedtuple class may be made by filling a tuple: valid while the
    // type's version tag is unchanged (an assignment to __new__ changes it).
    bool fills = false;
    unsigned int fills_version = 0;
};

// Direct-mapped: two types that collide evict each other, which costs time only.
class KindCache {
  public:
    KindEntry& slot(PyTypeObject* type) {
        const auto bits = reinterpret_cast<std::uintptr_t>(type) >> 4;
        return entries_[(bits ^ (bits >> 8)) % kSize];
    }
    int traverse(visitproc visit, void* arg);
    void clear();
    void forget(PyObject* watcher);

  private:
    static constexpr std::size_t kSize = 256;
    std::array<KindEntry, kSize> entries_{};
};

// Classifies types that are not among the built-in containers that the walkers test for directly.
KindEntry& resolve_kind(State& state, Namespace& space, PyTypeObject* type);

bool is_namedtuple_class(PyTypeObject* type);
bool is_structseq_class(PyTypeObject* type);

// Whether cls(*fields) does nothing but make the tuple, so that it can be allocated and filled.
bool namedtuple_fills(State& state, PyTypeObject* type);

}  // namespace treeops
