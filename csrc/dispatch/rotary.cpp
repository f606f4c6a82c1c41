// The entry of the rotary embedding.
#include "dispatch/run_on.h"

namespace pyft {
namespace {

void check_entries(const char* op, const TensorRef& tensor) {
  const int last = tensor.num_dims - 1;
  check(tensor.shape[last] <= 1 || tensor.strides[last] == 1 || tensor.num_elements() == 0, op, ": ",
        tensor.name, " has stride ", tensor.strides[last], " in its last dimension, expected 1");
}

void check_heads(const char* op, const TensorRef& heads, const TensorRef& q) {
  check_dtype(op, heads, q.dtype);
  check_num_dims(op, heads, 4);
  check_size(op, heads, 0, q.shape[0], "q has");
  check_size(op, heads, 2, q.shape[2], "q has");
  check_size(op, heads, 3, q.shape[3], "q has");
  check_entries(op, heads);
}

void check_table(const char* op, const TensorRef& table, const TensorRef& q, std::int64_t rotated) {
  check_dtype(op, table, q.dtype);
  check_num_dims(op, table, 3);
  check_size(op, table, 0, q.shape[0], "q has");
  check_size(op, table, 1, q.shape[2], "q has");
  check_size(op, table, 2, rotated, "cos has");
  check_entries(op, table);
}

}  // namespace

void rotary(const RotaryArgs& args, const ExecutionContext& context) {
  const char* op = "rotary";
  check_float_dtype(op, args.q);
  check_num_dims(op, args.q, 4);
  check_entries(op, args.q);
  check_heads(op, args.k, args.q);
  check_num_dims(op, args.cos, 3);
  const std::int64_t rotated = args.cos.shape[2], width = args.q.shape[3];
  check(rotated % 2 == 0 && rotated <= width, op, ": cos.shape[2] is ", rotated,
        ", expected an even number of at most ", width, ", q.shape[3]");
  check_table(op, args.cos, args.q, rotated);
  check_table(op, args.sin, args.q, rotated);
  for (const auto& [out, in] : {std::pair{&args.rotated_q, &args.q}, std::pair{&args.rotated_k, &args.k}}) {
    check_like(op, *out, *in);
    check_entries(op, *out);
  }
  const DeviceType device =
      common_device(op, {&args.q, &args.k, &args.cos, &args.sin, &args.rotated_q, &args.rotated_k});
  run_on(op, device, args, context, cpu::rotary, PYFT_CUDA_KERNEL(rotary));
}

}  // namespace pyft
