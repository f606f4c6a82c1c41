// swiglu and its gradient.
#include "bindings/bind.h"
#include "bindings/tensor_caster.h"

namespace py = pybind11;

namespace pyft::bindings {

void bind_swiglu(py::module_& module) {
  module.def(
      "swiglu",
      [](py::handle gate, py::handle up, py::handle y, int num_threads, std::uintptr_t stream) {
        const SwigluArgs args{tensor_argument(gate, "gate"), tensor_argument(up, "up"),
                              tensor_argument(y, "y")};
        run(pyft::swiglu, args, num_threads, stream);
      },
      py::kw_only(), py::arg("gate"), py::arg("up"), py::arg("y"), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "swiglu_backward",
      [](py::handle grad_y, py::handle gate, py::handle up, py::handle grad_gate, py::handle grad_up,
         int num_threads, std::uintptr_t stream) {
        const SwigluBackwardArgs args{tensor_argument(grad_y, "grad_y"), tensor_argument(gate, "gate"),
                                      tensor_argument(up, "up"), tensor_argument(grad_gate, "grad_gate"),
                                      tensor_argument(grad_up, "grad_up")};
        run(pyft::swiglu_backward, args, num_threads, stream);
      },
      py::kw_only(), py::arg("grad_y"), py::arg("gate"), py::arg("up"), py::arg("grad_gate"),
      py::arg("grad_up"), py::arg("num_threads"), py::arg("stream"));
}

}  // namespace pyft::bindings
