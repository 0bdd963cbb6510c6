// SPDX-License-Identifier: Apache-2.0
#include "tensors.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace optcore {

namespace {

// ---- DLPack's binary interface, version 1 ------------------------------------------------------
// Declared here as far as it is used: https://dmlc.github.io/dlpack/latest/c_api.html

struct DlDataType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};

struct DlTensor {
    void* data;
    std::int32_t device_type, device_id;
    std::int32_t ndim;
    DlDataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // null: contiguous, in the oldest versions
    std::uint64_t byte_offset;
};

struct DlExchange {
    std::uint32_t major, minor;
    void* previous;
    void* allocate;
    void* managed_from_object;
    void* managed_to_object;
    int (*view_of_object)(void* object, void* view);  // may be null
    void* current_stream;
};

constexpr std::uint8_t kDlFloat = 2, kDlBfloat = 4;
constexpr const char kCapsule[] = "dlpack_exchange_api";

const char* name_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::kFloat32: return "f32";
        case Dtype::kFloat64: return "f64";
        case Dtype::kBFloat16: return "bf16";
        case Dtype::kFloat16: return "f16";
    }
    return "?";
}

bool float_dtype(const DlDataType& type, Dtype* dtype) {
    if (type.lanes != 1) return false;
    if (type.code == kDlBfloat && type.bits == 16) return *dtype = Dtype::kBFloat16, true;
    if (type.code != kDlFloat) return false;
    if (type.bits == 32) return *dtype = Dtype::kFloat32, true;
    if (type.bits == 64) return *dtype = Dtype::kFloat64, true;
    if (type.bits == 16) return *dtype = Dtype::kFloat16, true;
    return false;
}

int bytes_of(Dtype dtype) {
    return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

std::string type_name(PyObject* object) { return Py_TYPE(object)->tp_name; }

}  // namespace

std::string Place::text() const {
    if (where && !where.is_none()) return py::str(where(name, column, leaf));
    return std::string(name) + "[" + std::to_string(leaf) + "]";
}

// ---- views -------------------------------------------------------------------------------------

bool TensorView::same_shape(const TensorView& other) const {
    return ndim == other.ndim && std::equal(shape, shape + ndim, other.shape);
}

bool TensorView::same_layout(const TensorView& other) const {
    if (size == 0) return true;
    for (int axis = 0; axis < ndim; ++axis) {
        if (shape[axis] > 1 && strides[axis] != other.strides[axis]) return false;
    }
    return true;
}

bool TensorView::is_dense() const {
    if (size <= 1) return true;
    std::int64_t expected = 1;
    int axis = ndim;
    while (axis > 0 && (shape[axis - 1] == 1 || strides[axis - 1] == expected)) {
        expected *= shape[--axis];
    }
    if (axis == 0) return true;  // contiguous
    std::vector<int> order;
    for (int i = 0; i < ndim; ++i) {
        if (shape[i] > 1) order.push_back(i);
    }
    std::sort(order.begin(), order.end(), [&](int a, int b) { return strides[a] < strides[b]; });
    expected = 1;
    for (int i : order) {
        if (strides[i] != expected) return false;
        expected *= shape[i];
    }
    return true;
}

char* TensorView::end() const {
    if (size == 0) return data;
    std::int64_t last = 0;
    for (int axis = 0; axis < ndim; ++axis) last += (shape[axis] - 1) * strides[axis];
    return data + (last + 1) * bytes_of(dtype);
}

std::string TensorView::describe() const {
    std::string text = std::string(name_of(dtype)) + "[";
    for (int axis = 0; axis < ndim; ++axis) {
        text += (axis ? ", " : "") + std::to_string(shape[axis]);
    }
    text += "]";
    if (device_type != static_cast<int>(DeviceType::kCpu)) {
        text += " on cuda:" + std::to_string(device_index);
    }
    return text;
}

// ---- memory in common ----------------------------------------------------------------------------
// A byte of a lies at A + sum s_i x_i, one of b at B + sum t_j y_j, with the bytes of an element as a
// last axis. Counting those of b from its end, they meet where sum c_k z_k = distance has a solution
// 0 <= z_k <= most_k: searched from the largest c on, with few z_k to try where axes are nested.

namespace {

struct Term {
    std::int64_t step, most;
};

class Search {
  public:
    explicit Search(std::vector<Term> terms) : terms_(std::move(terms)) {
        reach_.resize(terms_.size() + 1, 0);
        for (std::size_t k = terms_.size(); k-- > 0;) {
            reach_[k] = reach_[k + 1] + terms_[k].step * terms_[k].most;
        }
    }

    bool finds(std::int64_t rest, std::size_t k = 0) {
        if (rest < 0 || rest > reach_[k]) return false;
        if (k == terms_.size() || --patience_ < 0) return true;
        const Term& term = terms_[k];
        const std::int64_t beyond = rest - reach_[k + 1];  // what the smaller steps cannot do
        const std::int64_t first = beyond <= 0 ? 0 : (beyond + term.step - 1) / term.step;
        const std::int64_t last = std::min(term.most, rest / term.step);
        for (std::int64_t z = first; z <= last; ++z) {
            if (finds(rest - z * term.step, k + 1)) return true;
        }
        return false;
    }

  private:
    std::vector<Term> terms_;
    std::vector<std::int64_t> reach_;  // of the terms from k on
    int patience_ = 1 << 20;
};

// All steps of a view are multiples of this many bytes; 0 if it has a single element.
std::int64_t grid_of(const TensorView& view) {
    std::int64_t grid = 0;
    for (int axis = 0; axis < view.ndim; ++axis) {
        if (view.shape[axis] > 1) grid = std::gcd(grid, view.strides[axis]);
    }
    return grid * bytes_of(view.dtype);
}

}  // namespace

// Two elements of a view lie at one place where sum s_i d_i = 0, their places apart by d_i along each
// axis: one of the d_i is the first that is not 0, and may be taken as positive.
bool TensorView::may_overlap_itself() const {
    if (size <= 1) return false;
    std::vector<Term> axes;
    for (int i = 0; i < ndim; ++i) {
        if (shape[i] > 1) axes.push_back({strides[i], shape[i] - 1});
    }
    std::sort(axes.begin(), axes.end(),
              [](const Term& x, const Term& y) { return x.step > y.step; });
    if (axes.back().step == 0) return true;
    for (std::size_t first = axes.size(); first-- > 0;) {
        std::vector<Term> terms = {{axes[first].step, axes[first].most - 1}};
        std::int64_t reach = 0;  // of what comes after it
        for (std::size_t k = first + 1; k < axes.size(); ++k) {
            reach += axes[k].step * axes[k].most;
            terms.push_back({axes[k].step, 2 * axes[k].most});
        }
        if (Search(std::move(terms)).finds(reach - axes[first].step)) return true;
    }
    return false;
}

bool share_memory(const TensorView& a, const TensorView& b) {
    if (a.size == 0 || b.size == 0 || a.data >= b.end() || b.data >= a.end()) return false;
    // columns of one matrix, and the like: their elements lie side by side all along
    if (const std::int64_t grid = std::gcd(grid_of(a), grid_of(b))) {
        std::int64_t gap = (b.data - a.data) % grid;
        if (gap < 0) gap += grid;
        if (gap >= bytes_of(a.dtype) && gap <= grid - bytes_of(b.dtype)) return false;
    }
    std::vector<Term> terms = {{1, bytes_of(a.dtype) + bytes_of(b.dtype) - 2}};
    for (const TensorView* view : {&a, &b}) {
        for (int axis = 0; axis < view->ndim; ++axis) {
            const std::int64_t step = view->strides[axis] * bytes_of(view->dtype);
            const std::int64_t most = view->shape[axis] - 1;
            if (step == 0 || most == 0) continue;
            const auto same = std::find_if(terms.begin(), terms.end(),
                                           [&](const Term& term) { return term.step == step; });
            if (same != terms.end()) {
                same->most += most;
            } else {
                terms.push_back({step, most});
            }
        }
    }
    std::sort(terms.begin(), terms.end(),
              [](const Term& x, const Term& y) { return x.step > y.step; });
    return Search(std::move(terms)).finds(b.end() - 1 - a.data);
}

// ---- reading -----------------------------------------------------------------------------------

TensorReader::TensorReader(const py::object& torch)
    : tensor_type_(torch.attr("Tensor")),
      parameter_type_(torch.attr("nn").attr("Parameter")),
      strided_(torch.attr("strided")),
      dtypes_{torch.attr("float32"), torch.attr("float64"), torch.attr("bfloat16"),
              torch.attr("float16")} {
    py::object capsule = py::getattr(tensor_type_, "__dlpack_c_exchange_api__", py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), kCapsule)) return;
    const auto* table = static_cast<DlExchange*>(PyCapsule_GetPointer(capsule.ptr(), kCapsule));
    if (table->major == 1) from_py_object_ = table->view_of_object;
}

void TensorReader::read(PyObject* object, const Place& place, TensorView* view) const {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (type != tensor_type_.ptr() && type != parameter_type_.ptr()) {
        throw py::type_error("expected a torch.Tensor, got " + type_name(object) + ", at " +
                             place.text() +
                             "; kernels know no subclasses: leave use_accelerated_op out");
    }
    if (from_py_object_ == nullptr) {
        read_by_methods(object, view);
    } else if (!read_by_exchange(object, view)) {
        PyErr_Clear();  // says less than the line below
        view->device_type = 0;
    }
    view->size = 1;
    for (int axis = 0; axis < view->ndim; ++axis) view->size *= view->shape[axis];
    const bool known = view->device_type == static_cast<int>(DeviceType::kCpu) ||
                       view->device_type == static_cast<int>(DeviceType::kCuda);
    if (!known || (view->data == nullptr && view->size > 0)) {
        py::handle tensor(object);
        throw py::type_error("expected a dense float64, float32, bfloat16 or float16 tensor on "
                             "cpu or cuda, got " +
                             std::string(py::str(tensor.attr("dtype"))) + " " +
                             std::string(py::str(tensor.attr("layout"))) + " on " +
                             std::string(py::str(tensor.attr("device"))) +
                             (known ? " without memory (one of a batch, or freed)" : "") + ", at " +
                             place.text());
    }
}

bool TensorReader::read_by_exchange(PyObject* object, TensorView* view) const {
    DlTensor found;
    if (from_py_object_(object, &found) != 0) return false;
    if (!float_dtype(found.dtype, &view->dtype)) return false;
    view->data = static_cast<char*>(found.data) + found.byte_offset;
    if (found.data == nullptr) view->data = nullptr;
    view->device_type = found.device_type;
    view->device_index = found.device_id;
    view->ndim = found.ndim;
    view->shape = found.shape;
    view->strides = found.strides;
    return true;
}

void TensorReader::read_by_methods(PyObject* object, TensorView* view) const {
    py::handle tensor(object);
    const py::object dtype = tensor.attr("dtype");
    const auto* found = std::find_if(std::begin(dtypes_), std::end(dtypes_),
                                     [&](const py::object& each) { return each.is(dtype); });
    view->device_type = 0;
    if (found == std::end(dtypes_) || !py::object(tensor.attr("layout")).is(strided_)) return;
    view->dtype = static_cast<Dtype>(found - std::begin(dtypes_));
    const py::object device = tensor.attr("device");
    const std::string kind = py::str(device.attr("type"));
    if (kind == "cpu") view->device_type = static_cast<int>(DeviceType::kCpu);
    if (kind == "cuda") view->device_type = static_cast<int>(DeviceType::kCuda);
    if (view->device_type == 0) return;
    const py::object device_index = device.attr("index");
    view->device_index = device_index.is_none() ? 0 : device_index.cast<int>();
    view->own.clear();
    for (const char* name : {"size", "stride"}) {
        const py::object numbers = tensor.attr(name)();
        for (py::handle number : numbers) view->own.push_back(number.cast<std::int64_t>());
    }
    view->ndim = static_cast<int>(view->own.size() / 2);
    view->shape = view->own.data();
    view->strides = view->own.data() + view->ndim;
    view->data = reinterpret_cast<char*>(tensor.attr("data_ptr")().cast<std::uintptr_t>());
}

}  // namespace optcore
