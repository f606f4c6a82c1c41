// rms_norm, swiglu, rotary and what their gradients need.
#include "bindings/bind.h"
#include "bindings/tensor_caster.h"

namespace py = pybind11;

namespace pyft::bindings {
namespace {

void bind_rms_norm(py::module_& module) {
  module.def(
      "rms_norm",
      [](py::handle x, py::handle weight, py::handle y, py::handle inverse_rms, double eps,
         double weight_offset, int num_threads, std::uintptr_t stream) {
        const RmsNormArgs args{tensor_argument(x, "x"),
                               tensor_argument(weight, "weight"),
                               tensor_argument(y, "y"),
                               tensor_argument(inverse_rms, "inverse_rms"),
                               eps,
                               weight_offset};
        run(pyft::rms_norm, args, num_threads, stream);
      },
      py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("y"), py::arg("inverse_rms"), py::arg("eps"),
      py::arg("weight_offset"), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "rms_norm_backward",
      [](py::handle grad_y, py::handle x, py::handle weight, py::handle inverse_rms, py::handle grad_x,
         py::handle grad_weight, py::handle partials, double weight_offset, int num_threads,
         std::uintptr_t stream) {
        const RmsNormBackwardArgs args{
            tensor_argument(grad_y, "grad_y"),     tensor_argument(x, "x"),
            tensor_argument(weight, "weight"),     tensor_argument(inverse_rms, "inverse_rms"),
            tensor_argument(grad_x, "grad_x"),     tensor_argument(grad_weight, "grad_weight"),
            tensor_argument(partials, "partials"), weight_offset};
        run(pyft::rms_norm_backward, args, num_threads, stream);
      },
      py::kw_only(), py::arg("grad_y"), py::arg("x"), py::arg("weight"), py::arg("inverse_rms"),
      py::arg("grad_x"), py::arg("grad_weight").none(true), py::arg("partials").none(true),
      py::arg("weight_offset"), py::arg("num_threads"), py::arg("stream"));
}

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

}  // namespace

void bind_activations(py::module_& module) {
  bind_rms_norm(module);
  bind_swiglu(module);
  bind_rotary(module);
}

}  // namespace pyft::bindings
