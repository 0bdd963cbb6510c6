// SPDX-License-Identifier: Apache-2.0
#include "paths.h"

#include <structmember.h>

#include <cstddef>
#include <vector>

#include "stack.h"

namespace treeops {

namespace {

// Keeps messages short where keys are long, and the contents of arrays out of them.
Ref short_repr(PyObject* object) {
    constexpr Py_ssize_t kLimit = 80;
    if (PyObject_HasAttrString(object, "shape")) {
        return check(PyUnicode_FromFormat("<%s>", Py_TYPE(object)->tp_name));
    }
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
    explicit PathCollector(const Node* root)
        : stack_(root), node_(root) {
        paths_.reserve(root->num_leaves);
    }

    Ref collect() {
        if (node_->kind == NodeKind::kLeaf) {
            add_path(Ref());
        } else {
            visit();
        }
        return take_as_list(paths_);
    }

  private:
    void visit() {
        stack_.check();
        const Node& self = *node_++;
        for (std::uint32_t i = 0; i < self.arity; ++i) {
            if (node_->kind == NodeKind::kLeaf) {
                add_path(child_entry(self, i));
                ++node_;
            } else {
                entries_.push_stolen(child_entry(self, i));
                visit();
                entries_.truncate(entries_.size() - 1);
            }
        }
    }
    // The entries on the way down, then `last` if there is one.
    void add_path(Ref last) {
        const auto size = static_cast<Py_ssize_t>(entries_.size());
        Ref path = check(PyTuple_New(size + (last ? 1 : 0)));
        for (Py_ssize_t i = 0; i < size; ++i) {
            PyTuple_SET_ITEM(path.get(), i, new_reference(entries_[static_cast<std::size_t>(i)]));
        }
        if (last) PyTuple_SET_ITEM(path.get(), size, last.release());
        paths_.push_stolen(std::move(path));
    }

    const StackGuard stack_;
    const Node* node_;
    References paths_;
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

void raise_difference(const TreeRole& role, const PathStep* step, PyObject* expected,
                      PyObject* got) {
    Ref what = check(role.number == 0 ? PyUnicode_FromString(role.what)
                                      : PyUnicode_FromFormat("%s %d", role.what, role.number));
    raise(PyExc_ValueError, "%s: %U differs from %s at %U: expected %U, got %U", role.who,
          what.get(), role.whole, path_text(step).get(), expected, got);
}

Ref missing_keys(PyObject* from, PyObject* other) {
    constexpr Py_ssize_t kLimit = 8;
    Ref list = check(PyList_New(0));
    Ref keys = check(PySequence_Tuple(from));
    Ref known = check(PySet_New(other));  // keys are hashable
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(keys.get()); ++i) {
        PyObject* key = PyTuple_GET_ITEM(keys.get(), i);
        const int found = PySet_Contains(known.get(), key);
        check_status(found);
        if (found) continue;
        const bool full = PyList_GET_SIZE(list.get()) == kLimit;
        Ref text = full ? check(PyUnicode_FromString("...")) : short_repr(key);
        check_status(PyList_Append(list.get(), text.get()));
        if (full) break;
    }
    Ref comma = check(PyUnicode_FromString(", "));
    Ref joined = check(PyUnicode_Join(comma.get(), list.get()));
    return check(PyUnicode_FromFormat("[%U]", joined.get()));
}

Ref leaf_paths(const Node* root) { return PathCollector(root).collect(); }

}  // namespace treeops
