// SPDX-License-Identifier: Apache-2.0
#include "flatten.h"

#include "stack.h"
#include "state.h"

namespace treeops {

namespace {

class Flattener {
  public:
    Flattener(State& state, const char* who, const FlattenOptions& options, Flattened& result)
        : state_(state),
          who_(who),
          options_(options),
          space_(state.registry.lookup(options.space)),
          nodes_(result.nodes),
          leaves_(result.leaves),
          found_custom_(result.found_custom),
          sorted_(!state.registry.keeps_order(space_)) {
        if (state.registry.names_order(space_)) found_custom_ = true;
    }

    // `object` is kept alive by the caller. With a predicate, every node is shown to it first.
    template <bool kPredicate>
    void visit(PyObject* object, int depth);

  private:
    void add_leaf(PyObject* object) {
        leaves_.push_borrowed(object);
        nodes_.add_leaf();
    }

    // Most trees hold leaves of one type: seen once, a leaf costs one comparison.
    template <bool kPredicate>
    void visit_child(PyObject* object, int depth) {
        if (!kPredicate && Py_TYPE(object) == leaf_type_) {
            add_leaf(object);
            return;
        }
        Ref held = Ref::borrow(object);  // its container may be changed by code that runs meanwhile
        visit<kPredicate>(object, depth);
    }

    bool is_leaf_by_predicate(PyObject* object) {
        Ref answer = check(PyObject_CallOneArg(options_.is_leaf, object));
        if (answer.get() == Py_True) return true;
        if (answer.get() == Py_False) return false;
        const int truth = PyObject_IsTrue(answer.get());
        check_status(truth);
        return truth != 0;
    }

    void check_depth(int depth) {
        if (depth >= checked_depth_) check_deeper(depth);
    }

    // The stack is looked at every few levels.
    void check_deeper(int depth) {
        if (depth < kMaxRecursionDepth) {
            StackGuard().check();
            checked_depth_ = std::min(depth + kLevelsPerCheck, kMaxRecursionDepth);
            return;
        }
        raise(PyExc_RecursionError,
              "%s: expected a tree at most %d deep, got a deeper one; it may contain itself", who_,
              kMaxRecursionDepth);
    }

    [[noreturn]] void raise_changed(const char* container) const {
        raise(PyExc_RuntimeError,
              "%s: expected the tree to stay as it is while it is flattened, got a %s that changed "
              "size; do not change containers in is_leaf or a flatten function",
              who_, container);
    }

    template <bool kPredicate>
    void visit_tuple(PyObject* tuple, NodeKind kind, Ref subject, int depth);
    template <bool kPredicate>
    void visit_list(PyObject* list, int depth);
    template <bool kPredicate>
    void visit_dict(PyObject* dict, NodeKind kind, Ref extra, int depth);
    template <bool kPredicate>
    void visit_ordered_dict(PyObject* dict, int depth);
    template <bool kPredicate>
    [[gnu::noinline]] void visit_deque(PyObject* deque, int depth);
    template <bool kPredicate>
    [[gnu::noinline]] void visit_custom(PyObject* object, Registration* registration, int depth);

    void collect_in_order(PyObject* dict, References& keys);

    // Visits children_[base ...] in the order of the children, and drops them.
    template <bool kPredicate>
    void visit_values(std::size_t base, std::size_t count, const std::uint32_t* order, int depth);

    State& state_;
    const char* who_;
    const FlattenOptions& options_;
    Namespace& space_;
    NodeList& nodes_;
    References& leaves_;
    bool& found_custom_;
    const bool sorted_;  // the values of dicts by their keys
    static constexpr int kLevelsPerCheck = 16;
    int checked_depth_ = kLevelsPerCheck;
    PyTypeObject* leaf_type_ = nullptr;
    References children_;  // values of the mappings on the way down
    // Keys of one mapping at a time.
    absl::InlinedVector<PyObject*, 32> keys_;  // borrowed: no code runs
    References ordered_keys_;                  // held: iterating over an OrderedDict may run code
};

template <bool kPredicate>
void Flattener::visit(PyObject* object, int depth) {
    if (kPredicate && is_leaf_by_predicate(object)) return add_leaf(object);
    PyTypeObject* type = Py_TYPE(object);
    if (type == leaf_type_) return add_leaf(object);
    if (type == &PyDict_Type) return visit_dict<kPredicate>(object, NodeKind::kDict, Ref(), depth);
    if (type == &PyList_Type) return visit_list<kPredicate>(object, depth);
    if (type == &PyTuple_Type) {
        return visit_tuple<kPredicate>(object, NodeKind::kTuple, Ref(), depth);
    }
    if (type == &PyODict_Type) return visit_ordered_dict<kPredicate>(object, depth);
    if (object == Py_None) {
        if (options_.none_is_leaf) return add_leaf(object);
        nodes_.open(NodeKind::kNone, 0);
        return;
    }
    const KindEntry entry = resolve_kind(state_, space_, type);
    switch (entry.kind) {
        case NodeKind::kLeaf:
            leaf_type_ = type;
            return add_leaf(object);
        case NodeKind::kCustom:
            return visit_custom<kPredicate>(object, entry.registration, depth);
        case NodeKind::kNamedTuple:
        case NodeKind::kStructSequence:
            return visit_tuple<kPredicate>(object, entry.kind,
                                           Ref::borrow(reinterpret_cast<PyObject*>(type)), depth);
        case NodeKind::kDefaultDict:
            return visit_dict<kPredicate>(
                object, entry.kind,
                check(PyObject_GetAttr(object, state_.name_default_factory.get())), depth);
        case NodeKind::kDeque:
            return visit_deque<kPredicate>(object, depth);
        default:
            TREEOPS_CHECK(false);
    }
}

template <bool kPredicate>
void Flattener::visit_tuple(PyObject* tuple, NodeKind kind, Ref subject, int depth) {
    const Py_ssize_t size = PyTuple_GET_SIZE(tuple);
    const std::size_t index = nodes_.open(kind, size, std::move(subject));
    if (size > 0) check_depth(depth);
    const std::size_t start = leaves_.size();
    for (Py_ssize_t i = 0; i < size; ++i) {
        visit_child<kPredicate>(PyTuple_GET_ITEM(tuple, i), depth + 1);
    }
    nodes_.close(index, leaves_.size() - start);
}

template <bool kPredicate>
void Flattener::visit_list(PyObject* list, int depth) {
    const Py_ssize_t size = PyList_GET_SIZE(list);
    const std::size_t index = nodes_.open(NodeKind::kList, size);
    if (size > 0) check_depth(depth);
    const std::size_t start = leaves_.size();
    for (Py_ssize_t i = 0; i < size; ++i) {
        if (PyList_GET_SIZE(list) != size) raise_changed("list");
        visit_child<kPredicate>(PyList_GET_ITEM(list, i), depth + 1);
    }
    nodes_.close(index, leaves_.size() - start);
}

template <bool kPredicate>
void Flattener::visit_values(std::size_t base, std::size_t count, const std::uint32_t* order,
                             int depth) {
    for (std::size_t j = 0; j < count; ++j) {
        PyObject*& slot = children_[base + (order == nullptr ? j : order[j])];
        if (!kPredicate && Py_TYPE(slot) == leaf_type_) {
            nodes_.add_leaf();
            leaves_.push_stolen(Ref::steal(std::exchange(slot, nullptr)));
        } else {
            visit<kPredicate>(slot, depth);
        }
    }
    children_.truncate(base);
}

template <bool kPredicate>
void Flattener::visit_dict(PyObject* dict, NodeKind kind, Ref extra, int depth) {
    const std::size_t base = children_.size();
    const auto size = static_cast<std::size_t>(PyDict_GET_SIZE(dict));
    if (size > 0) check_depth(depth);
    keys_.clear();
    keys_.reserve(size);
    children_.reserve(base + size);
    std::uint64_t hash = ShapeTable::start(size);
    Py_ssize_t position = 0;
    PyObject *key, *value;
    while (PyDict_Next(dict, &position, &key, &value)) {  // no code runs in this loop
        keys_.push_back(key);
        hash = ShapeTable::mix(hash, key);
        children_.push_borrowed(value);
    }
    Ref owner = state_.shapes.find_or_make(state_, keys_.data(), size, hash, sorted_);
    const auto* shape = reinterpret_cast<KeyShape*>(owner.get());
    const std::size_t index = nodes_.open(kind, size, std::move(owner), std::move(extra));
    nodes_[index].in_order = !sorted_;
    const std::size_t start = leaves_.size();
    visit_values<kPredicate>(base, size, sorted_ ? shape->order : nullptr, depth + 1);
    nodes_.close(index, leaves_.size() - start);
}

// Whether an OrderedDict iterates over `keys` in this order; the last one need not be asked for.
bool iterates_in_order(PyObject* dict, References& keys) {
    Ref iterator = check(PyODict_Type.tp_iter(dict));
    const iternextfunc next = Py_TYPE(iterator.get())->tp_iternext;
    for (std::size_t i = 0; i + 1 < keys.size(); ++i) {
        Ref key = Ref::steal(next(iterator.get()));
        if (!key && PyErr_Occurred()) throw PythonError{};
        if (key.get() != keys[i]) return false;
    }
    return true;
}

// Pushes the keys and values of an OrderedDict in the order of its iteration.
void Flattener::collect_in_order(PyObject* dict, References& keys) {
    Ref iterator = check(PyODict_Type.tp_iter(dict));
    const iternextfunc next = Py_TYPE(iterator.get())->tp_iternext;
    while (PyObject* key = next(iterator.get())) {
        keys.push_stolen(Ref::steal(key));
        PyObject* value = PyDict_GetItemWithError(dict, key);
        if (value == nullptr) {
            if (PyErr_Occurred()) throw PythonError{};
            raise_changed("OrderedDict");
        }
        children_.push_borrowed(value);
    }
    if (PyErr_Occurred()) throw PythonError{};
}

// The order of an OrderedDict is its iteration order, which move_to_end makes another than that of
// the dict beneath. Iterating costs more than the rest of the walk, so it ends one key early: when
// all keys but the last have come in the order of the dict beneath, so does the last.
template <bool kPredicate>
void Flattener::visit_ordered_dict(PyObject* dict, int depth) {
    const std::size_t base = children_.size();
    const auto size = static_cast<std::size_t>(PyDict_GET_SIZE(dict));
    if (size > 0) check_depth(depth);
    children_.reserve(base + size);
    References& keys = ordered_keys_;
    keys.reserve(size);
    Py_ssize_t position = 0;
    PyObject *key, *value;
    while (PyDict_Next(dict, &position, &key, &value)) {  // no code runs in this loop
        keys.push_borrowed(key);
        children_.push_borrowed(value);
    }
    if (size > 1 && !iterates_in_order(dict, keys)) {
        keys.truncate(0);
        children_.truncate(base);
        collect_in_order(dict, keys);
        if (keys.size() != size) raise_changed("OrderedDict");
    }
    std::uint64_t hash = ShapeTable::start(size);
    for (std::size_t i = 0; i < size; ++i) hash = ShapeTable::mix(hash, keys[i]);
    Ref owner = state_.shapes.find_or_make(state_, keys.data(), size, hash, false);
    keys.truncate(0);
    const std::size_t index = nodes_.open(NodeKind::kOrderedDict, size, std::move(owner));
    const std::size_t start = leaves_.size();
    visit_values<kPredicate>(base, size, nullptr, depth + 1);
    nodes_.close(index, leaves_.size() - start);
}

template <bool kPredicate>
void Flattener::visit_deque(PyObject* deque, int depth) {
    Ref maxlen = check(PyObject_GetAttr(deque, state_.name_maxlen.get()));
    Ref items = check(PySequence_Tuple(deque));
    const Py_ssize_t size = PyTuple_GET_SIZE(items.get());
    const std::size_t index = nodes_.open(NodeKind::kDeque, size, Ref(), std::move(maxlen));
    if (size > 0) check_depth(depth);
    const std::size_t start = leaves_.size();
    for (Py_ssize_t i = 0; i < size; ++i) {
        visit_child<kPredicate>(PyTuple_GET_ITEM(items.get(), i), depth + 1);
    }
    nodes_.close(index, leaves_.size() - start);
}

template <bool kPredicate>
void Flattener::visit_custom(PyObject* object, Registration* registration, int depth) {
    found_custom_ = true;
    Ref held = Ref::borrow(reinterpret_cast<PyObject*>(registration));
    CustomChildren parts = flatten_custom(who_, registration, object);
    const Py_ssize_t size = PyTuple_GET_SIZE(parts.children.get());
    if (size > 0) check_depth(depth);
    const bool has_entries = static_cast<bool>(parts.entries);
    Ref extra = has_entries ? check(PyTuple_Pack(2, parts.metadata.get(), parts.entries.get()))
                            : std::move(parts.metadata);
    const std::size_t index =
        nodes_.open(NodeKind::kCustom, size, std::move(held), std::move(extra));
    nodes_[index].has_entries = has_entries;
    const std::size_t start = leaves_.size();
    for (Py_ssize_t i = 0; i < size; ++i) {
        visit_child<kPredicate>(PyTuple_GET_ITEM(parts.children.get(), i), depth + 1);
    }
    nodes_.close(index, leaves_.size() - start);
}

// As a tuple, or a TypeError that says which part of the result cannot be iterated over.
Ref iterated(const char* who, Registration* registration, const char* part, PyObject* object) {
    if (Py_TYPE(object)->tp_iter == nullptr && !PySequence_Check(object)) {
        raise(PyExc_TypeError, "%s: expected the flatten function of %S to return %s, got %S", who,
              type_name(registration->type).get(), part, describe_object(object).get());
    }
    return check(PySequence_Tuple(object));
}

}  // namespace

CustomChildren flatten_custom(const char* who, Registration* registration, PyObject* object) {
    Ref function = Ref::borrow(registration->flatten_func);
    Ref result = check(PyObject_CallOneArg(function.get(), object));
    result = iterated(who, registration, "(children, metadata) or (children, metadata, entries)",
                      result.get());
    const Py_ssize_t parts = PyTuple_GET_SIZE(result.get());
    if (parts != 2 && parts != 3) {
        raise(PyExc_RuntimeError,
              "%s: expected the flatten function of %S to return (children, metadata) or "
              "(children, metadata, entries), got %zd items",
              who, type_name(registration->type).get(), parts);
    }
    CustomChildren custom;
    custom.children =
        iterated(who, registration, "an iterable of children", PyTuple_GET_ITEM(result.get(), 0));
    custom.metadata = Ref::borrow(PyTuple_GET_ITEM(result.get(), 1));
    if (parts == 3 && PyTuple_GET_ITEM(result.get(), 2) != Py_None) {
        custom.entries = iterated(who, registration, "an iterable of entries or None",
                                  PyTuple_GET_ITEM(result.get(), 2));
        const Py_ssize_t children = PyTuple_GET_SIZE(custom.children.get());
        const Py_ssize_t entries = PyTuple_GET_SIZE(custom.entries.get());
        if (children != entries) {
            raise(PyExc_RuntimeError,
                  "%s: expected the flatten function of %S to return one entry per child, got %zd "
                  "children and %zd entries",
                  who, type_name(registration->type).get(), children, entries);
        }
    }
    return custom;
}

void flatten(State& state, const char* who, PyObject* tree, const FlattenOptions& options,
             Flattened& result) {
    Flattener flattener(state, who, options, result);
    if (options.is_leaf != nullptr) {
        flattener.visit<true>(tree, 0);
    } else {
        flattener.visit<false>(tree, 0);
    }
}

Ref take_treespec(State& state, const FlattenOptions& options, Flattened& flattened) {
    return make_treespec(state, flattened.nodes, options.none_is_leaf,
                         flattened.found_custom ? options.space : state.empty_string.get());
}

Ref take_leaves(Flattened& flattened) { return take_as_list(flattened.leaves); }

}  // namespace treeops
