// rotary, whose gradient is its transpose.
#include "bindings/bind.h"
#include "bindings/tensor_caster.h"

namespace py = pybind11;

namespace pyft::bindings {

void bind_rotary(py::module_& module) {
  module.def(
      "rotary",
      [](py::handle q, py::handle k, py::handle cos, py::handle sin, py::handle rotated_q,
         py::handle rotated_k, bool transposed, int num_threads, std::uintptr_t stream) {
        const RotaryArgs args{tensor_argument(q, "q"),
                              tensor_argument(k, "k"),
                              tensor_argument(cos, "cos"),
                              tensor_argument(sin, "sin"),
                              tensor_argument(rotated_q, "rotated_q"),
                              tensor_argument(rotated_k, "rotated_k"),
                              transposed};
        run(pyft::rotary, args, num_threads, stream);
      },
      py::kw_only(), py::arg("q"), py::arg("k"), py::arg("cos"), py::arg("sin"), py::arg("rotated_q"),
      py::arg("rotated_k"), py::arg("transposed"), py::arg("num_threads"), py::arg("stream"));
}

}  // namespace pyft::bindings
