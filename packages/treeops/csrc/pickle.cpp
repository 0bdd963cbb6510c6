// SPDX-License-Identifier: Apache-2.0
#include "pickle.h"

#include "stack.h"
#include "state.h"

// A node is one item of the payload's last tuple, in pre-order:
//   leaf, None         kind
//   tuple, list        (kind, arity)
//   dict, OrderedDict  (kind, keys)              keys in the mapping's own order
//   defaultdict        (kind, keys, default_factory)
//   dict, defaultdict  ... True at the end when the children stand in the mapping's own order
//   deque              (kind, arity, maxlen)
//   namedtuple, structseq  (kind, arity, class)
//   custom             (kind, arity, class, metadata, entries or None)
namespace treeops {

namespace {

constexpr long kVersion = 1;

Ref dump_node(const Node& node) {
    const int kind = static_cast<int>(node.kind);
    const auto arity = static_cast<Py_ssize_t>(node.arity);
    switch (node.kind) {
        case NodeKind::kLeaf:
        case NodeKind::kNone:
            return check(PyLong_FromLong(kind));
        case NodeKind::kTuple:
        case NodeKind::kList:
            return check(Py_BuildValue("(in)", kind, arity));
        case NodeKind::kDict:
        case NodeKind::kOrderedDict:
            if (node.in_order) {
                return check(Py_BuildValue("(iOO)", kind, node.shape()->keys, Py_True));
            }
            return check(Py_BuildValue("(iO)", kind, node.shape()->keys));
        case NodeKind::kDefaultDict:
            if (node.in_order) {
                return check(
                    Py_BuildValue("(iOOO)", kind, node.shape()->keys, node.extra, Py_True));
            }
            return check(Py_BuildValue("(iOO)", kind, node.shape()->keys, node.extra));
        case NodeKind::kDeque:
            return check(Py_BuildValue("(inO)", kind, arity, node.extra));
        case NodeKind::kNamedTuple:
        case NodeKind::kStructSequence:
            return check(Py_BuildValue("(inO)", kind, arity, node.subject));
        case NodeKind::kCustom:
            return check(Py_BuildValue("(inOOO)", kind, arity, node.registration()->type,
                                       node.metadata(),
                                       node.has_entries ? node.entries() : Py_None));
    }
    TREEOPS_CHECK(false);
}

[[noreturn]] void raise_malformed(const char* what) {
    raise(
        PyExc_ValueError,
        "PyTreeSpec: expected a pickle made by treeops, got one with %s; it is damaged or was not "
        "made by PyTreeSpec.__reduce__",
        what);
}

class Loader {
  public:
    Loader(State& state, PyObject* space, bool none_is_leaf, PyObject* items)
        : state_(state), space_(space), none_is_leaf_(none_is_leaf), items_(items) {}

    void load(int depth);
    bool finished() const { return position_ == PyTuple_GET_SIZE(items_); }
    NodeList& nodes() { return nodes_; }

  private:
    // An inner node has `size` parts; a leaf and None are a number alone.
    static void check_parts(PyObject* item, Py_ssize_t size) {
        const Py_ssize_t found = PyTuple_Check(item) ? PyTuple_GET_SIZE(item) : 0;
        if (found != size) raise_malformed("a node with the wrong number of parts");
    }
    static PyObject* part(PyObject* item, Py_ssize_t index) {
        return PyTuple_GET_ITEM(item, index);
    }
    static std::size_t arity_of(PyObject* item) {
        PyObject* value = part(item, 1);
        if (!PyLong_CheckExact(value)) raise_malformed("a number of children that is no int");
        const std::size_t arity = PyLong_AsSize_t(value);
        if (arity == static_cast<std::size_t>(-1) && PyErr_Occurred()) {
            PyErr_Clear();
            raise_malformed("a number of children out of range");
        }
        return arity;
    }
    PyTypeObject* class_of(PyObject* item) {
        PyObject* value = part(item, 2);
        if (!PyType_Check(value)) raise_malformed("a node class that is no class");
        return reinterpret_cast<PyTypeObject*>(value);
    }
    Registration* registration_of(PyTypeObject* type) {
        Registration* found = state_.registry.lookup(space_).find(type);
        if (found == nullptr) found = state_.registry.global().find(type);
        if (found == nullptr) {
            raise(PyExc_ValueError,
                  "PyTreeSpec: expected %S to be registered in namespace %R, got no registration; "
                  "register it before unpickling",
                  type_name(type).get(), space_);
        }
        return found;
    }
    // Of a namedtuple, or what a struct sequence shows as a tuple.
    static std::size_t num_fields(NodeKind kind, PyObject* type) {
        if (kind == NodeKind::kNamedTuple) {
            Ref fields = check(PySequence_Tuple(attribute(type, "_fields").get()));
            return static_cast<std::size_t>(PyTuple_GET_SIZE(fields.get()));
        }
        const std::size_t size = PyLong_AsSize_t(attribute(type, "n_sequence_fields").get());
        if (PyErr_Occurred()) throw PythonError{};
        return size;
    }
    void load_children(std::size_t index, std::size_t arity, int depth);

    State& state_;
    const StackGuard stack_;
    PyObject* space_;
    bool none_is_leaf_;
    PyObject* items_;
    Py_ssize_t position_ = 0;
    std::size_t num_leaves_ = 0;
    NodeList nodes_;
};

void Loader::load_children(std::size_t index, std::size_t arity, int depth) {
    if (arity > 0 && depth >= kMaxRecursionDepth) {
        raise(PyExc_RecursionError, "PyTreeSpec: expected a tree at most %d deep, got a deeper one",
              kMaxRecursionDepth);
    }
    stack_.check();
    const std::size_t start = num_leaves_;
    for (std::size_t i = 0; i < arity; ++i) load(depth + 1);
    nodes_.close(index, num_leaves_ - start);
}

void Loader::load(int depth) {
    if (finished()) raise_malformed("too few nodes");
    PyObject* item = PyTuple_GET_ITEM(items_, position_++);
    if (PyTuple_Check(item) && PyTuple_GET_SIZE(item) == 0) raise_malformed("a node of no kind");
    PyObject* kind_object = PyTuple_Check(item) ? part(item, 0) : item;
    if (!PyLong_CheckExact(kind_object)) raise_malformed("a node kind that is no int");
    const long number = PyLong_AsLong(kind_object);
    if (number == -1 && PyErr_Occurred()) PyErr_Clear();
    if (number < 0 || number > static_cast<long>(NodeKind::kStructSequence)) {
        raise_malformed("an unknown node kind");
    }
    const auto kind = static_cast<NodeKind>(number);
    switch (kind) {
        case NodeKind::kLeaf:
            check_parts(item, 0);
            nodes_.add_leaf();
            ++num_leaves_;
            return;
        case NodeKind::kNone:
            check_parts(item, 0);
            if (none_is_leaf_) raise_malformed("a None node where None is a leaf");
            nodes_.open(kind, 0);
            return;
        case NodeKind::kTuple:
        case NodeKind::kList: {
            check_parts(item, 2);
            const std::size_t arity = arity_of(item);
            return load_children(nodes_.open(kind, arity), arity, depth);
        }
        case NodeKind::kDict:
        case NodeKind::kOrderedDict:
        case NodeKind::kDefaultDict: {
            const Py_ssize_t mark = kind == NodeKind::kDefaultDict ? 3 : 2;
            const bool in_order = kind != NodeKind::kOrderedDict && PyTuple_Check(item) &&
                                  PyTuple_GET_SIZE(item) == mark + 1;
            check_parts(item, in_order ? mark + 1 : mark);
            PyObject* keys = part(item, 1);
            if (!PyTuple_Check(keys)) raise_malformed("keys that are no tuple");
            Ref factory = kind == NodeKind::kDefaultDict ? Ref::borrow(part(item, 2)) : Ref();
            if (factory && factory.get() != Py_None && !PyCallable_Check(factory.get())) {
                raise_malformed("a default_factory that cannot be called");
            }
            Ref unique = check(PyFrozenSet_New(keys));
            if (PySet_GET_SIZE(unique.get()) != PyTuple_GET_SIZE(keys)) {
                raise_malformed("a key that occurs twice");
            }
            if (in_order && PyTuple_GET_ITEM(item, mark) != Py_True) {
                raise_malformed("a mark of order that is not True");
            }
            Ref shape = make_shape(state_, keys, kind != NodeKind::kOrderedDict && !in_order);
            const auto arity = static_cast<std::size_t>(PyTuple_GET_SIZE(keys));
            const std::size_t index =
                nodes_.open(kind, arity, std::move(shape), std::move(factory));
            nodes_[index].in_order = in_order;
            return load_children(index, arity, depth);
        }
        case NodeKind::kDeque: {
            check_parts(item, 3);
            const std::size_t arity = arity_of(item);
            PyObject* maxlen = part(item, 2);
            if (maxlen != Py_None) {
                if (!PyLong_CheckExact(maxlen)) raise_malformed("a maxlen that is no int");
                const Py_ssize_t most = PyLong_AsSsize_t(maxlen);
                if (most < 0) PyErr_Clear();  // of an int too large
                if (most < 0 || static_cast<std::size_t>(most) < arity) {
                    raise_malformed("a maxlen that its items exceed");
                }
            }
            return load_children(nodes_.open(kind, arity, Ref(), Ref::borrow(maxlen)), arity,
                                 depth);
        }
        case NodeKind::kNamedTuple:
        case NodeKind::kStructSequence: {
            check_parts(item, 3);
            const std::size_t arity = arity_of(item);
            PyTypeObject* type = class_of(item);
            const bool fits = kind == NodeKind::kNamedTuple ? is_namedtuple_class(type)
                                                            : is_structseq_class(type);
            if (!fits) raise_malformed("a class that is no namedtuple or struct sequence any more");
            if (arity != num_fields(kind, part(item, 2))) {
                raise_malformed("a number of fields that its class does not have");
            }
            Ref subject = Ref::borrow(reinterpret_cast<PyObject*>(type));
            return load_children(nodes_.open(kind, arity, std::move(subject)), arity, depth);
        }
        case NodeKind::kCustom: {
            check_parts(item, 5);
            const std::size_t arity = arity_of(item);
            Ref subject = Ref::borrow(reinterpret_cast<PyObject*>(registration_of(class_of(item))));
            PyObject* entries = part(item, 4);
            const bool has_entries = entries != Py_None;
            if (has_entries && (!PyTuple_Check(entries) ||
                                static_cast<std::size_t>(PyTuple_GET_SIZE(entries)) != arity)) {
                raise_malformed("entries that do not match the children");
            }
            Ref extra = has_entries ? check(PyTuple_Pack(2, part(item, 3), entries))
                                    : Ref::borrow(part(item, 3));
            const std::size_t index =
                nodes_.open(kind, arity, std::move(subject), std::move(extra));
            nodes_[index].has_entries = has_entries;
            return load_children(index, arity, depth);
        }
    }
}

}  // namespace

Ref dump_treespec(const TreeSpec* spec) {
    References items;
    for (Py_ssize_t i = 0; i < Py_SIZE(spec); ++i) items.push_stolen(dump_node(spec->nodes[i]));
    Ref nodes = take_as_tuple(items);
    return check(Py_BuildValue("(lOOO)", kVersion, spec->none_is_leaf ? Py_True : Py_False,
                               spec->space, nodes.get()));
}

Ref load_treespec(State& state, PyObject* payload) {
    if (PyTuple_GET_SIZE(payload) < 1 || !PyLong_CheckExact(PyTuple_GET_ITEM(payload, 0))) {
        raise_malformed("no version");
    }
    PyObject* version = PyTuple_GET_ITEM(payload, 0);
    int overflow = 0;
    const long number = PyLong_AsLongAndOverflow(version, &overflow);
    if (overflow != 0) raise_malformed("a version that no release has");
    if (number != kVersion) {
        raise(PyExc_ValueError,
              "PyTreeSpec: expected a pickle of version %ld, got version %ld; load it with the "
              "treeops release that wrote it",
              kVersion, number);
    }
    PyObject *none_is_leaf, *space, *items;
    if (PyTuple_GET_SIZE(payload) != 4) raise_malformed("the wrong number of fields");
    none_is_leaf = PyTuple_GET_ITEM(payload, 1);
    space = PyTuple_GET_ITEM(payload, 2);
    items = PyTuple_GET_ITEM(payload, 3);
    if (!PyBool_Check(none_is_leaf) || !PyUnicode_Check(space) || !PyTuple_Check(items)) {
        raise_malformed("fields of the wrong type");
    }
    Loader loader(state, space, none_is_leaf == Py_True, items);
    loader.load(0);
    if (!loader.finished()) raise_malformed("too many nodes");
    return make_treespec(state, loader.nodes(), none_is_leaf == Py_True, space);
}

}  // namespace treeops
