// A small persistent thread pool. pyft has its own because a second OpenMP runtime beside torch's
// oversubscribes the machine, and linking torch's would tie the binary to one torch.
#pragma once

#include <cstdint>
#include <functional>

namespace pyft::cpu {

// Calls body(begin, end) for the pieces [0, grain), [grain, 2 grain), ... of [0, n) on at most `num_threads`
// threads, the calling one included, and returns when all are done. The pieces are the same whatever
// num_threads is.
//
// The first exception of a body is rethrown here; pieces not yet begun are then left out. A call from inside
// a body, or while another thread uses the pool, runs on the calling thread alone. Works in a forked child.
void parallel_for(int num_threads, std::int64_t n, std::int64_t grain,
                  const std::function<void(std::int64_t begin, std::int64_t end)>& body);

// Entries of float32 or bfloat16 below which waking a thread costs more than simple work on them.
constexpr std::int64_t kGrain = 16384;

// Rows of `width` entries in a piece of at least kGrain.
constexpr std::int64_t rows_per_piece(std::int64_t width) { return kGrain / (width > 0 ? width : 1) + 1; }

}  // namespace pyft::cpu
