// What the files that bind operations share.
#pragma once

#include <pybind11/pybind11.h>

#include "pyft/ops.h"

namespace pyft::bindings {

// Runs one operation of ops.h without the GIL.
template <typename Args>
void run(void (*op)(const Args&, const ExecutionContext&), const Args& args, int num_threads,
         std::uintptr_t stream) {
  const pybind11::gil_scoped_release without_gil;
  op(args, ExecutionContext{num_threads, stream});
}

// The storage of an NF4 weight as Python passes it: (codes, absmax, absmax_codes, nested_absmax, offset,
// (N, K)).
Nf4Tensors nf4_argument(const pybind11::tuple& parts);

void bind_nf4(pybind11::module_& module);
void bind_lora(pybind11::module_& module);
void bind_cross_entropy(pybind11::module_& module);
void bind_linear_cross_entropy_steps(pybind11::module_& module);
void bind_rms_norm(pybind11::module_& module);
void bind_rotary(pybind11::module_& module);
void bind_swiglu(pybind11::module_& module);

}  // namespace pyft::bindings
