// SPDX-License-Identifier: Apache-2.0
// PyTreeSpec({'a': *, 'b': [*, *]})
#include "paths.h"
#include "stack.h"
#include "treespec.h"

namespace treeops {

namespace {

class Writer {
  public:
    explicit Writer(const Node* root) : stack_(root), pieces_(check(PyList_New(0))) {}
    void text(const char* text) { object(check(PyUnicode_FromString(text)).get()); }
    void object(PyObject* text) { check_status(PyList_Append(pieces_.get(), text)); }
    void repr(PyObject* value) { object(check(PyObject_Repr(value)).get()); }
    Ref join() {
        Ref empty = check(PyUnicode_FromString(""));
        return check(PyUnicode_Join(empty.get(), pieces_.get()));
    }

    void check_stack() const { stack_.check(); }

  private:
    const StackGuard stack_;
    Ref pieces_;
};

void write_node(Writer& out, const Node*& node);

void write_children(Writer& out, const Node& parent, const Node*& node) {
    for (std::uint32_t i = 0; i < parent.arity; ++i) {
        if (i > 0) out.text(", ");
        write_node(out, node);
    }
}

void write_mapping(Writer& out, const Node& parent, const Node*& node) {
    PyObject* keys = parent.child_keys();
    out.text("{");
    for (std::uint32_t i = 0; i < parent.arity; ++i) {
        if (i > 0) out.text(", ");
        out.repr(PyTuple_GET_ITEM(keys, i));
        out.text(": ");
        write_node(out, node);
    }
    out.text("}");
}

// NT(a=*, b=*): one name per child.
void write_fields(Writer& out, const Node& parent, PyObject* names, const Node*& node) {
    out.text("(");
    for (std::uint32_t i = 0; i < parent.arity; ++i) {
        if (i > 0) out.text(", ");
        out.object(PyTuple_GET_ITEM(names, i));
        out.text("=");
        write_node(out, node);
    }
    out.text(")");
}

void write_node(Writer& out, const Node*& node) {
    out.check_stack();
    const Node& self = *node++;
    switch (self.kind) {
        case NodeKind::kLeaf:
            out.text("*");
            break;
        case NodeKind::kNone:
            out.text("None");
            break;
        case NodeKind::kTuple:
            out.text("(");
            write_children(out, self, node);
            out.text(self.arity == 1 ? ",)" : ")");
            break;
        case NodeKind::kList:
            out.text("[");
            write_children(out, self, node);
            out.text("]");
            break;
        case NodeKind::kDict:
            write_mapping(out, self, node);
            break;
        case NodeKind::kOrderedDict:
            out.text("OrderedDict(");
            if (self.arity > 0) write_mapping(out, self, node);
            out.text(")");
            break;
        case NodeKind::kDefaultDict:
            out.text("defaultdict(");
            out.repr(self.extra);
            out.text(", ");
            write_mapping(out, self, node);
            out.text(")");
            break;
        case NodeKind::kDeque:
            out.text("deque(");
            if (self.arity > 0) {
                out.text("[");
                write_children(out, self, node);
                out.text("]");
            }
            if (self.extra != Py_None) {
                out.text(self.arity > 0 ? ", maxlen=" : "maxlen=");
                out.repr(self.extra);
            }
            out.text(")");
            break;
        case NodeKind::kNamedTuple: {
            out.object(attribute(self.subject, "__name__").get());
            Ref names = field_names(self);
            write_fields(out, self, names.get(), node);
            break;
        }
        case NodeKind::kStructSequence: {
            out.object(type_name(self.type()).get());
            Ref names = field_names(self);
            write_fields(out, self, names.get(), node);
            break;
        }
        case NodeKind::kCustom: {
            out.text("CustomTreeNode(");
            PyObject* type = reinterpret_cast<PyObject*>(self.registration()->type);
            out.object(attribute(type, "__name__").get());
            out.text("[");
            out.repr(self.metadata());
            out.text("], [");
            write_children(out, self, node);
            out.text("])");
            break;
        }
    }
}

Ref repr_treespec(TreeSpec* self) {
    Writer out(self->nodes);
    out.text("PyTreeSpec(");
    const Node* node = self->nodes;
    write_node(out, node);
    if (self->none_is_leaf) out.text(", NoneIsLeaf");
    if (PyUnicode_GET_LENGTH(self->space) != 0) {
        out.text(", namespace=");
        out.repr(self->space);
    }
    out.text(")");
    return out.join();
}

}  // namespace

PyObject* treespec_repr(PyObject* self) {
    const int entered = Py_ReprEnter(self);  // metadata may hold this very treespec
    if (entered != 0) return entered > 0 ? PyUnicode_FromString("PyTreeSpec(...)") : nullptr;
    PyObject* result =
        guarded<PyObject*>(nullptr, [&] { return repr_treespec(as_treespec(self)).release(); });
    Py_ReprLeave(self);
    return result;
}

}  // namespace treeops
