// SPDX-License-Identifier: Apache-2.0
// The functions of the two modules; a module includes this after it has defined its device.
//
//   step(rule, scalars, param, grad, old, out, fresh, stream, before, checked)
//   step_backward(rule, scalars, param, grad, old, steps, dout, dfresh, dparam, dgrad, dold,
//                 partials, stream)
//   check(param, grad, old)
//   prepare(rule, param, grad, old) -> Prepared or None, then .run(scalars, stream): a step in place,
//                                     taken as it is
//   chunks(tensors)
//
// Columns are lists of tensors or None. The first two return None if the kernel ran, or, nothing
// done, the leaves whose columns do not lie alike in memory. `check` refuses what a step in place
// would refuse and returns whether such a step needs no copies.
#pragma once

#include <memory>

#include "bind.h"

namespace optcore {

// On the CPU streams mean nothing.
void launch(const Job& job, int device_index, std::uintptr_t stream);
void launch(const BackwardJob& job, int device_index, std::uintptr_t stream);

namespace {

void read_columns(Arguments* arguments, const char* name, py::handle lists, Column* columns,
                  bool written) {
    if (lists.is_none()) return;
    py::sequence given = py::reinterpret_borrow<py::sequence>(lists);
    if (given.size() > static_cast<std::size_t>(kMaxBuffers)) {
        throw py::value_error("expected at most " + std::to_string(kMaxBuffers) + " columns as " +
                              name + ", got " + std::to_string(given.size()));
    }
    for (std::size_t k = 0; k < given.size(); ++k) {
        const py::object list = given[k];
        arguments->column(name, list, &columns[k], written);
    }
}

Rule rule_of(int number) {
    if (number < 0 || number >= static_cast<int>(Rule::kCount)) {
        throw py::value_error("expected a rule below " +
                              std::to_string(static_cast<int>(Rule::kCount)) + ", got " +
                              std::to_string(number));
    }
    return static_cast<Rule>(number);
}

void check_buffers(const Job& job) {
    visit(job.rule, [&](auto rule) {
        using R = decltype(rule);
        for (int k = 0; k < R::kBuffers; ++k) {
            if (!job.old[k].present()) throw py::value_error("expected more buffers for this rule");
        }
    });
}

// A step in place, read and checked: what runs must be what was read.
struct Prepared {
    Job job;
    int device_index;
    py::object tensors;  // alive as long as this
};

template <typename SomeJob>
py::object finish(const Arguments& arguments, SomeJob* job, py::handle scalars,
                  const TensorReader& reader, DeviceType device, std::uintptr_t stream,
                  const py::object& before) {
    check_buffers(*job);
    read_scalars(reader, scalars, device, arguments.device_index(), job->scalars);
    if (!arguments.uneven().empty()) {
        py::list leaves;
        for (Py_ssize_t leaf : arguments.uneven()) leaves.append(leaf);
        return leaves;
    }
    job->sizes = arguments.sizes();
    job->wide = arguments.is_wide();
    if (!before.is_none()) before();  // nothing is refused any more
    {
        py::gil_scoped_release others_may_run;
        launch(*job, arguments.device_index(), stream);
    }
    return py::none();
}

template <DeviceType kDevice>
void bind_device(py::module_& module) {
    auto* reader = new TensorReader(py::module_::import("torch"));  // lives as long as the process
    module.def(
        "step",
        [reader](int rule, py::handle scalars, py::handle param, py::handle grad, py::handle old,
                 py::handle out, py::handle fresh, std::uintptr_t stream, py::object before,
                 bool checked) {
            Job job;
            job.rule = rule_of(rule);
            Arguments arguments(*reader, kDevice);
            const bool inplace = out.is(param) && !param.is_none();
            arguments.column("params", param, &job.param, inplace);
            arguments.column("grads", grad, &job.grad, false);
            read_columns(&arguments, "buffers", old, job.old, fresh.is(old));
            if (inplace) {
                job.out = job.param;
            } else {
                arguments.column("out", out, &job.out, true);
            }
            if (fresh.is(old)) {
                for (int k = 0; k < kMaxBuffers; ++k) job.fresh[k] = job.old[k];
            } else {
                read_columns(&arguments, "fresh buffers", fresh, job.fresh, true);
            }
            if (!checked) arguments.refuse_overlaps();
            return finish(arguments, &job, scalars, *reader, kDevice, stream, before);
        },
        py::arg("rule"), py::arg("scalars"), py::arg("param"), py::arg("grad"), py::arg("old"),
        py::arg("out"), py::arg("fresh"), py::arg("stream") = 0, py::arg("before") = py::none(),
        py::arg("checked") = false);
    module.def(
        "step_backward",
        [reader](int rule, py::handle scalars, py::handle param, py::handle grad, py::handle old,
                 bool steps, py::handle dout, py::handle dfresh, py::handle dparam,
                 py::handle dgrad, py::handle dold, py::object partials, std::uintptr_t stream) {
            BackwardJob job;
            job.rule = rule_of(rule);
            job.out_is_param = steps;
            Arguments arguments(*reader, kDevice);
            arguments.column("grads", grad, &job.grad, false);
            arguments.column("params", param, &job.param, false);
            read_columns(&arguments, "buffers", old, job.old, false);
            arguments.column("cotangents", dout, &job.out, false);
            read_columns(&arguments, "cotangents of buffers", dfresh, job.fresh, false);
            arguments.column("results", dparam, &job.dparam, true);
            arguments.column("results", dgrad, &job.dgrad, true);
            read_columns(&arguments, "results", dold, job.dold, true);
            arguments.refuse_overlaps();
            if (!partials.is_none()) {
                job.partials = reinterpret_cast<double*>(
                    partials.attr("data_ptr")().template cast<std::uintptr_t>());
            }
            return finish(arguments, &job, scalars, *reader, kDevice, stream, py::none());
        },
        py::arg("rule"), py::arg("scalars"), py::arg("param"), py::arg("grad"), py::arg("old"),
        py::arg("steps"), py::arg("dout"), py::arg("dfresh"), py::arg("dparam"), py::arg("dgrad"),
        py::arg("dold"), py::arg("partials"), py::arg("stream") = 0);
    py::class_<Prepared>(module, "Prepared", py::module_local())
        .def(
            "run",
            [reader](Prepared& self, py::handle scalars, std::uintptr_t stream) {
                read_scalars(*reader, scalars, kDevice, self.device_index, self.job.scalars);
                py::gil_scoped_release others_may_run;
                launch(self.job, self.device_index, stream);
            },
            py::arg("scalars"), py::arg("stream") = 0);
    module.def(
        "check",
        [reader](py::handle param, py::handle grad, py::handle old) {
            Job job;
            Arguments arguments(*reader, kDevice);
            arguments.column("params", param, &job.param, true);
            arguments.column("grads", grad, &job.grad, false);
            read_columns(&arguments, "buffers", old, job.old, true);
            arguments.refuse_overlaps();
            return arguments.uneven().empty();
        },
        py::arg("param"), py::arg("grad"), py::arg("old"));
    module.def(
        "prepare",
        [reader](int rule, py::handle param, py::handle grad, py::handle old) -> py::object {
            auto prepared = std::make_unique<Prepared>();
            Job& job = prepared->job;
            job.rule = rule_of(rule);
            Arguments arguments(*reader, kDevice);
            try {
                arguments.column("params", param, &job.param, true);
                arguments.column("grads", grad, &job.grad, false);
                read_columns(&arguments, "buffers", old, job.old, true);
                arguments.refuse_overlaps();
                check_buffers(job);
            } catch (const py::builtin_exception&) {
                return py::none();
            }
            if (!arguments.uneven().empty()) return py::none();
            job.out = job.param;
            for (int k = 0; k < kMaxBuffers; ++k) job.fresh[k] = job.old[k];
            job.sizes = arguments.sizes();
            job.wide = arguments.is_wide();
            prepared->device_index = arguments.device_index();
            prepared->tensors = py::make_tuple(param, grad, old);
            return py::cast(std::move(prepared));
        },
        py::arg("rule"), py::arg("param"), py::arg("grad"), py::arg("old"));
    module.def("chunks", [reader](py::list tensors) {
        std::int64_t rows = 0;
        TensorView view;
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors.ptr()); ++i) {
            reader->read(PyList_GET_ITEM(tensors.ptr(), i), "tensors", i, &view);
            rows += chunks_of(view.size);
        }
        return rows;
    });
    module.def("uses_exchange", [reader] { return reader->uses_exchange(); });
    module.def("forget_exchange", [reader] { reader->forget_exchange(); });
    module.attr("SCALARS") = kAllScalars;
}

}  // namespace

}  // namespace optcore
