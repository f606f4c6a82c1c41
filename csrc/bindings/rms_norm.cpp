// rms_norm and its gradient.
#include "bindings/bind.h"
#include "bindings/tensor_caster.h"

namespace py = pybind11;

namespace pyft::bindings {

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

}  // namespace pyft::bindings
