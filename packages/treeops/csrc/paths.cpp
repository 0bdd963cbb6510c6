// SPDX-License-Identifier: Apache-2.0
#include "paths.h"

#include <structmember.h>

#include <cstddef>
#include <vector>

namespace treeops {

namespace {

// Keeps messages short where keys are long.
Ref short_repr(PyObject* object) {
    constexpr Py_ssize_t kLimit = 80;
    Ref repr = check(PyObject_Repr(object));
    if (PyUnicode_GET_LENGTH(repr.get()) <= kLimit) return repr;
    Ref head = check(PyUnicode_Substring(repr.get(), 0, kLimit));
    return check(PyUnicode_FromFormat("%U...", head.get()));
}

Ref step_text(const PathStep& step) {
    const Node& node = *step.node;
    if (node.kind == NodeKind::kNamedTuple || node.kind == NodeKind::kStructSequence) {
        Ref names = field_names(node);
        return check(PyUnicode_FromFormat(".%S", PyTuple_GET_ITEM(names.get(), step.child)));
    }
    Ref entry = child_entry(node, step.child);
    return check(PyUnicode_FromFormat("[%U]", short_repr(entry.get()).get()));
}

class PathCollector {
  public:
    explicit PathCollector(Ref paths) : paths_(std::move(paths)) {}

    void visit(const Node*& node) {
        const Node& self = *node++;
        if (self.kind == NodeKind::kLeaf) {
            Ref path = check(PyTuple_New(static_cast<Py_ssize_t>(entries_.size())));
            for (std::size_t i = 0; i < entries_.size(); ++i) {
                PyTuple_SET_ITEM(path.get(), static_cast<Py_ssize_t>(i),
                                 new_reference(entries_[i]));
            }
            check_status(PyList_Append(paths_.get(), path.get()));
            return;
        }
        for (std::uint32_t i = 0; i < self.arity; ++i) {
            entries_.push_stolen(child_entry(self, i));
            visit(node);
            entries_.truncate(entries_.size() - 1);
        }
    }
    Ref take() { return std::move(paths_); }

  private:
    Ref paths_;
    References entries_;
};

}  // namespace

Ref child_entry(const Node& node, std::uint32_t child) {
    if (node.is_mapping()) return Ref::borrow(PyTuple_GET_ITEM(node.child_keys(), child));
    if (node.entries() != nullptr) return Ref::borrow(PyTuple_GET_ITEM(node.entries(), child));
    return check(PyLong_FromUnsignedLong(child));
}

Ref field_names(const Node& node) {
    std::vector<Ref> names(node.arity);
    if (node.kind == NodeKind::kNamedTuple) {
        Ref fields = attribute(node.subject, "_fields");
        const Py_ssize_t size = PyTuple_Check(fields.get()) ? PyTuple_GET_SIZE(fields.get()) : 0;
        for (std::size_t i = 0; i < names.size() && static_cast<Py_ssize_t>(i) < size; ++i) {
            names[i] = Ref::borrow(PyTuple_GET_ITEM(fields.get(), static_cast<Py_ssize_t>(i)));
        }
    } else {
        // Unnamed fields have no member: the offset of a member tells which field it is.
        const auto first = static_cast<Py_ssize_t>(offsetof(PyTupleObject, ob_item));
        for (PyMemberDef* member = node.type()->tp_members; member && member->name; ++member) {
            const auto i = static_cast<std::size_t>((member->offset - first) /
                                                    static_cast<Py_ssize_t>(sizeof(PyObject*)));
            if (i < names.size()) names[i] = check(PyUnicode_FromString(member->name));
        }
    }
    Ref result = check(PyTuple_New(static_cast<Py_ssize_t>(names.size())));
    for (std::size_t i = 0; i < names.size(); ++i) {
        if (!names[i]) names[i] = check(PyUnicode_FromFormat("<unnamed@%zu>", i));
        PyTuple_SET_ITEM(result.get(), static_cast<Py_ssize_t>(i), names[i].release());
    }
    return result;
}

Ref path_text(const PathStep* step) {
    if (step == nullptr) return check(PyUnicode_FromString("the root"));
    Ref pieces = check(PyList_New(0));
    for (; step != nullptr; step = step->parent) {
        check_status(PyList_Append(pieces.get(), step_text(*step).get()));
    }
    check_status(PyList_Reverse(pieces.get()));
    Ref empty = check(PyUnicode_FromString(""));
    return check(PyUnicode_Join(empty.get(), pieces.get()));
}

Ref leaf_paths(const Node* root) {
    PathCollector collector(check(PyList_New(0)));
    collector.visit(root);
    return collector.take();
}

}  // namespace treeops
