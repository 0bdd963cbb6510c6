// SPDX-License-Identifier: Apache-2.0
#include "accessors.h"

#include "paths.h"
#include "stack.h"
#include "state.h"

namespace treeops {

namespace {

constexpr int kNumKinds = static_cast<int>(NodeKind::kStructSequence) + 1;

void load_kinds(State& state) {
    Ref typing = check(PyImport_ImportModule("treeops.typing"));
    Ref kind_class = attribute(typing.get(), "PyTreeKind");
    Ref kinds = check(PyTuple_New(kNumKinds));
    for (int i = 0; i < kNumKinds; ++i) {
        Ref number = check(PyLong_FromLong(i));
        PyTuple_SET_ITEM(kinds.get(), i,
                         check(PyObject_CallOneArg(kind_class.get(), number.get())).release());
    }
    state.kinds = std::move(kinds);
}

void load_accessors(State& state) {
    if (state.accessor_type) return;
    Ref module = check(PyImport_ImportModule("treeops.accessors"));
    state.auto_entry = attribute(module.get(), "AutoEntry");
    state.sequence_entry = attribute(module.get(), "SequenceEntry");
    state.mapping_entry = attribute(module.get(), "MappingEntry");
    state.namedtuple_entry = attribute(module.get(), "NamedTupleEntry");
    state.structseq_entry = attribute(module.get(), "StructSequenceEntry");
    Ref accessor_type = attribute(module.get(), "PyTreeAccessor");
    auto* type = reinterpret_cast<PyTypeObject*>(accessor_type.get());
    TREEOPS_CHECK(PyType_Check(accessor_type.get()) && PyType_IsSubtype(type, &PyTuple_Type) &&
                  type->tp_itemsize == PyTuple_Type.tp_itemsize);
    state.accessor_type = std::move(accessor_type);
}

class AccessorCollector {
  public:
    AccessorCollector(State& state, const Node* root, Ref accessors)
        : state_(state), stack_(root), accessors_(std::move(accessors)) {}

    void visit(const Node*& node) {
        const Node& self = *node++;
        if (self.kind == NodeKind::kLeaf) return add_accessor();
        if (self.arity == 0) return;
        stack_.check();
        PyObject* entry_type = entry_type_of(state_, self);
        PyObject* type = node_type(state_, self);
        PyObject* kind = kind_object(state_, self.kind);
        for (std::uint32_t i = 0; i < self.arity; ++i) {
            if (node->num_leaves == 0) {  // no accessor passes here
                node += node->num_nodes;
                continue;
            }
            Ref entry = child_entry(self, i);
            PyObject* arguments[] = {entry.get(), type, kind};
            steps_.push_stolen(check(PyObject_Vectorcall(entry_type, arguments, 3, nullptr)));
            visit(node);
            steps_.truncate(steps_.size() - 1);
        }
    }
    Ref take() { return std::move(accessors_); }

  private:
    void add_accessor() {
        auto* type = reinterpret_cast<PyTypeObject*>(state_.accessor_type.get());
        const auto size = static_cast<Py_ssize_t>(steps_.size());
        Ref accessor = check(type->tp_alloc(type, size));
        for (Py_ssize_t i = 0; i < size; ++i) {
            PyTuple_SET_ITEM(accessor.get(), i, new_reference(steps_[static_cast<std::size_t>(i)]));
        }
        check_status(PyList_Append(accessors_.get(), accessor.get()));
    }

    State& state_;
    const StackGuard stack_;
    Ref accessors_;
    References steps_;
};

}  // namespace

PyObject* kind_object(State& state, NodeKind kind) {
    if (!state.kinds) load_kinds(state);
    return PyTuple_GET_ITEM(state.kinds.get(), static_cast<Py_ssize_t>(kind));
}

PyObject* entry_type_of(State& state, const Node& node) {
    load_accessors(state);
    switch (node.kind) {
        case NodeKind::kTuple:
        case NodeKind::kList:
        case NodeKind::kDeque:
            return state.sequence_entry.get();
        case NodeKind::kDict:
        case NodeKind::kOrderedDict:
        case NodeKind::kDefaultDict:
            return state.mapping_entry.get();
        case NodeKind::kNamedTuple:
            return state.namedtuple_entry.get();
        case NodeKind::kStructSequence:
            return state.structseq_entry.get();
        case NodeKind::kCustom:
            return node.registration()->entry_type;
        case NodeKind::kLeaf:
        case NodeKind::kNone:
            break;
    }
    TREEOPS_CHECK(false);
}

Ref leaf_accessors(State& state, const Node* root) {
    load_accessors(state);
    AccessorCollector collector(state, root, check(PyList_New(0)));
    collector.visit(root);
    return collector.take();
}

}  // namespace treeops
