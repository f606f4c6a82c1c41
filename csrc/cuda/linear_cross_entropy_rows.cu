// Which rows count, and moving rows between all T and the R that are worked on.
//
//   linear_cross_entropy_rows_kernel   one block, of 1024 threads or fewer for few tokens. Thread i looks at
//                                      the targets of run i:
//
//       targets   [run 0 | run 1 | run 2 | .. ]           runs of ceil(T / threads)
//       counts    [  2       0       3     .. ]
//       ends      [  2       2       5     .. ]           in shared memory, ten steps, each adding the number
//                                                         that stands 1, 2, 4 .. places before
//       rows      [r r | | r r r | ..      -1 -1 -1]      run i writes from end - count on, in order
//
//   linear_cross_entropy_move_kernel   a block to a row of the C: gathers it, or scatters it
//
// Nothing is written behind R, however many rows count. Shared memory: 8 KB. Rows of K elements move in words
// of 16 bytes where all addresses allow it.
#include "cuda/device/loss.h"
#include "cuda/device/memory.h"
#include "cuda/device/warp.h"
#include "cuda/operations.h"

namespace pyft::cuda {
namespace {

constexpr int kMostRuns = 1024;
constexpr int kMoveThreads = 256;

__global__ void __launch_bounds__(kMostRuns)
    linear_cross_entropy_rows_kernel(const std::int64_t* targets, std::int64_t num_tokens,
                                     std::int64_t ignore_index, std::int64_t num_rows, bool is_exact,
                                     std::int64_t* rows, std::int64_t* row_targets, float* verdict) {
  PYFT_SHARED(std::int64_t, ends, kMostRuns);
  const int thread = static_cast<int>(threadIdx.x), num_runs = static_cast<int>(blockDim.x);
  const std::int64_t length = (num_tokens + num_runs - 1) / num_runs;
  const std::int64_t first = thread * length;
  const std::int64_t last = first + length < num_tokens ? first + length : num_tokens;
  std::int64_t count = 0;
  for (std::int64_t t = first; t < last; ++t) count += targets[t] != ignore_index;
  std::int64_t end = count;
  for (int distance = 1; distance < num_runs; distance *= 2) {
    ends[thread] = end;
    __syncthreads();
    if (thread >= distance) end += ends[thread - distance];
    __syncthreads();
  }
  ends[thread] = end;
  __syncthreads();
  const std::int64_t total = ends[num_runs - 1];
  const bool fits = !is_exact || total == num_rows;
  const std::int64_t invalid = ignore_index == -1 ? -2 : -1;
  std::int64_t to = end - count;
  for (std::int64_t t = first; t < last && to < num_rows; ++t) {
    if (targets[t] == ignore_index) continue;
    rows[to] = t;
    row_targets[to] = fits ? targets[t] : invalid;
    ++to;
  }
  for (std::int64_t i = total + thread; i < num_rows; i += num_runs) {
    rows[i] = -1;
    row_targets[i] = fits ? ignore_index : invalid;
  }
  if (thread == 0) *verdict = fits ? 0.0f : not_a_number();
}

// to[i] = from[rows[i]] or to[rows[i]] = from[i], in elements of any kind.
template <typename Element, bool gathers>
__global__ void __launch_bounds__(kMoveThreads)
    linear_cross_entropy_move_kernel(const Element* from, const std::int64_t* rows, std::int64_t width,
                                     Element* to) {
  const std::int64_t i = blockIdx.x, row = rows[i];
  if (!gathers && row < 0) return;
  const Element* const source = from + (gathers ? row : i) * width;
  Element* const target = to + (gathers ? i : row) * width;
  for (std::int64_t k = threadIdx.x; k < width; k += blockDim.x) {
    target[k] = row < 0 ? Element{} : source[k];
  }
}

template <typename Element, bool gathers>
void launch_move(const void* from, const TensorRef& rows, std::int64_t width, void* to, const Queue& queue) {
  launch(linear_cross_entropy_move_kernel<Element, gathers>,
         {"linear_cross_entropy_move_kernel", dim3(static_cast<unsigned>(rows.shape[0])),
          dim3(whole_warps(width, kMoveThreads)), 0},
         queue, static_cast<const Element*>(from), rows.as<const std::int64_t>(), width,
         static_cast<Element*>(to));
}

template <typename Element, bool gathers>
void move_rows(const TensorRef& from, const TensorRef& rows, const TensorRef& to, const Queue& queue) {
  const std::int64_t width = from.shape[1], per_word = 16 / static_cast<std::int64_t>(sizeof(Element));
  if (width % per_word == 0 && is_aligned(from.data, 16) && is_aligned(to.data, 16)) {
    launch_move<uint4, gathers>(from.data, rows, width / per_word, to.data, queue);
  } else {
    launch_move<Element, gathers>(from.data, rows, width, to.data, queue);
  }
}

}  // namespace

void counted_rows(const CountedRowsArgs& args, std::uintptr_t stream) {
  const Queue queue(args.targets, stream);
  launch(
      linear_cross_entropy_rows_kernel,
      {"linear_cross_entropy_rows_kernel", dim3(1), dim3(whole_warps(args.targets.shape[0], kMostRuns)), 0},
      queue, args.targets.as<const std::int64_t>(), args.targets.shape[0], args.ignore_index,
      args.rows.shape[0], args.is_exact, args.rows.as<std::int64_t>(), args.row_targets.as<std::int64_t>(),
      args.verdict.as<float>());
}

void gather_rows(const GatherRowsArgs& args, std::uintptr_t stream) {
  const Queue queue(args.from, stream);
  if (args.from.dtype == DType::kBFloat16) {
    move_rows<std::uint16_t, true>(args.from, args.rows, args.to, queue);
  } else {
    move_rows<float, true>(args.from, args.rows, args.to, queue);
  }
}

void scatter_rows(const ScatterRowsArgs& args, std::uintptr_t stream) {
  const Queue queue(args.from, stream);
  move_rows<float, false>(args.from, args.rows, args.to, queue);
}

}  // namespace pyft::cuda
