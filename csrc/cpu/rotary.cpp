// The rotary embedding: tokens are dealt out in pieces.
#include "cpu/isa.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"

namespace pyft::cpu {
namespace {

// The heads of one token of q or k, and of where they go.
TokenHeads heads_of(const TensorRef& in, const TensorRef& out, std::int64_t row, std::int64_t token,
                    std::int64_t rotated) {
  return {in.at(row * in.strides[0] + token * in.strides[2]),
          in.strides[1],
          out.at(row * out.strides[0] + token * out.strides[2]),
          out.strides[1],
          in.shape[1],
          in.shape[3],
          rotated};
}

}  // namespace

void rotary(const RotaryArgs& args, int num_threads) {
  const std::int64_t num_tokens = args.q.shape[2], rotated = args.cos.shape[2];
  const std::int64_t entries = (args.q.shape[1] + args.k.shape[1]) * args.q.shape[3];
  parallel_for(
      num_threads, args.q.shape[0] * num_tokens, rows_per_piece(entries),
      [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t index = begin; index < end; ++index) {
          const std::int64_t row = index / num_tokens, token = index % num_tokens;
          const void* const cos = args.cos.at(row * args.cos.strides[0] + token * args.cos.strides[1]);
          const void* const sin = args.sin.at(row * args.sin.strides[0] + token * args.sin.strides[1]);
          for (const TokenHeads& heads : {heads_of(args.q, args.rotated_q, row, token, rotated),
                                          heads_of(args.k, args.rotated_k, row, token, rotated)}) {
            kernels().rotate_heads(heads, cos, sin, args.q.dtype, args.transposed);
          }
        }
      });
}

}  // namespace pyft::cpu
