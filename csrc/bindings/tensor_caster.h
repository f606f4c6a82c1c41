// From a torch tensor to a TensorRef by reading its attributes, so that no torch header is needed and one
// binary serves every torch. Errors name the argument.
#pragma once

#include <pybind11/pybind11.h>

#include "pyft/tensor_ref.h"

namespace pyft::bindings {

// `tensor` is a dense torch tensor, or None where the operation allows it (TensorRef::defined is then false).
TensorRef tensor_argument(pybind11::handle tensor, const char* name);

}  // namespace pyft::bindings
