// The steps of linear_cross_entropy on CUDA.
#include <pybind11/stl.h>

#include <array>

#include "bindings/bind.h"
#include "bindings/tensor_caster.h"

namespace py = pybind11;

namespace pyft::bindings {
namespace {

// As Python passes them: logit_scale, logit_softcap, label_smoothing, z_loss.
using Terms = std::array<double, 4>;

LogitTerms logit_terms(const TensorRef& bias, const Terms& terms) { return {bias, terms[0], terms[1]}; }

LossTerms loss_terms(const Terms& terms) { return {terms[2], terms[3]}; }

void bind_rows(py::module_& module) {
  module.def(
      "check_linear_cross_entropy",
      [](py::handle hidden, py::handle head_weight, py::handle bias, py::handle targets, const Terms& terms) {
        check_linear_cross_entropy({tensor_argument(hidden, "hidden"),
                                    tensor_argument(head_weight, "head_weight"),
                                    tensor_argument(targets, "targets"),
                                    logit_terms(tensor_argument(bias, "bias"), terms), loss_terms(terms)});
      },
      py::kw_only(), py::arg("hidden"), py::arg("head_weight"), py::arg("bias").none(true),
      py::arg("targets"), py::arg("terms"));
  module.def(
      "counted_rows",
      [](py::handle targets, py::handle rows, py::handle row_targets, py::handle verdict,
         std::int64_t ignore_index, bool is_exact, int num_threads, std::uintptr_t stream) {
        const CountedRowsArgs args{tensor_argument(targets, "targets"),
                                   tensor_argument(rows, "rows"),
                                   tensor_argument(row_targets, "row_targets"),
                                   tensor_argument(verdict, "verdict"),
                                   ignore_index,
                                   is_exact};
        run(pyft::counted_rows, args, num_threads, stream);
      },
      py::kw_only(), py::arg("targets"), py::arg("rows"), py::arg("row_targets"), py::arg("verdict"),
      py::arg("ignore_index"), py::arg("is_exact"), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "gather_rows",
      [](py::handle from, py::handle rows, py::handle to, int num_threads, std::uintptr_t stream) {
        const GatherRowsArgs args{tensor_argument(from, "source"), tensor_argument(rows, "rows"),
                                  tensor_argument(to, "to")};
        run(pyft::gather_rows, args, num_threads, stream);
      },
      py::kw_only(), py::arg("source"), py::arg("rows"), py::arg("to"), py::arg("num_threads"),
      py::arg("stream"));
  module.def(
      "scatter_rows",
      [](py::handle from, py::handle rows, py::handle to, int num_threads, std::uintptr_t stream) {
        const ScatterRowsArgs args{tensor_argument(from, "source"), tensor_argument(rows, "rows"),
                                   tensor_argument(to, "to")};
        run(pyft::scatter_rows, args, num_threads, stream);
      },
      py::kw_only(), py::arg("source"), py::arg("rows"), py::arg("to"), py::arg("num_threads"),
      py::arg("stream"));
}

void bind_panels(py::module_& module) {
  module.def(
      "linear_cross_entropy_panel",
      [](py::handle products, py::handle weights, py::handle bias, py::handle row_targets,
         py::handle row_stats, py::handle sums, std::int64_t first_id, std::int64_t ignore_index,
         const Terms& terms, int num_threads, std::uintptr_t stream) {
        const LinearCrossEntropyPanelArgs args{tensor_argument(products, "products"),
                                               tensor_argument(weights, "weights"),
                                               tensor_argument(row_targets, "row_targets"),
                                               tensor_argument(row_stats, "row_stats"),
                                               tensor_argument(sums, "sums"),
                                               first_id,
                                               ignore_index,
                                               logit_terms(tensor_argument(bias, "bias"), terms)};
        run(pyft::linear_cross_entropy_panel, args, num_threads, stream);
      },
      py::kw_only(), py::arg("products"), py::arg("weights").none(true), py::arg("bias").none(true),
      py::arg("row_targets"), py::arg("row_stats"), py::arg("sums").none(true), py::arg("first_id"),
      py::arg("ignore_index"), py::arg("terms"), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "linear_cross_entropy_finish",
      [](py::handle row_stats, py::handle row_targets, py::handle rows, py::handle head_weight,
         py::handle sums, py::handle row_losses, py::handle grad_hidden, std::int64_t ignore_index,
         const Terms& terms, int num_threads, std::uintptr_t stream) {
        const LinearCrossEntropyFinishArgs args{tensor_argument(row_stats, "row_stats"),
                                                tensor_argument(row_targets, "row_targets"),
                                                tensor_argument(rows, "rows"),
                                                tensor_argument(head_weight, "head_weight"),
                                                tensor_argument(sums, "sums"),
                                                tensor_argument(row_losses, "row_losses"),
                                                tensor_argument(grad_hidden, "grad_hidden"),
                                                ignore_index,
                                                logit_terms({}, terms),
                                                loss_terms(terms)};
        run(pyft::linear_cross_entropy_finish, args, num_threads, stream);
      },
      py::kw_only(), py::arg("row_stats"), py::arg("row_targets"), py::arg("rows"), py::arg("head_weight"),
      py::arg("sums").none(true), py::arg("row_losses"), py::arg("grad_hidden").none(true),
      py::arg("ignore_index"), py::arg("terms"), py::arg("num_threads"), py::arg("stream"));
}

void bind_chunks(py::module_& module) {
  module.def(
      "linear_cross_entropy_chunk",
      [](py::handle products, py::handle gradient, py::handle bias, py::handle row_targets,
         py::handle row_losses, std::int64_t ignore_index, const Terms& terms, int num_threads,
         std::uintptr_t stream) {
        const LinearCrossEntropyChunkArgs args{tensor_argument(products, "products"),
                                               tensor_argument(gradient, "gradient"),
                                               tensor_argument(row_targets, "row_targets"),
                                               tensor_argument(row_losses, "row_losses"),
                                               ignore_index,
                                               logit_terms(tensor_argument(bias, "bias"), terms),
                                               loss_terms(terms)};
        run(pyft::linear_cross_entropy_chunk, args, num_threads, stream);
      },
      py::kw_only(), py::arg("products"), py::arg("gradient"), py::arg("bias").none(true),
      py::arg("row_targets"), py::arg("row_losses"), py::arg("ignore_index"), py::arg("terms"),
      py::arg("num_threads"), py::arg("stream"));
}

}  // namespace

void bind_linear_cross_entropy_steps(py::module_& module) {
  bind_rows(module);
  bind_panels(module);
  bind_chunks(module);
}

}  // namespace pyft::bindings
