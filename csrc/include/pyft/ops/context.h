// Where an operation works.
#pragma once

#include <cstdint>

namespace pyft {

// Where the work runs. Always given, never defaulted: a forgotten stream is a race.
struct ExecutionContext {
  int num_threads;        // CPU: how many threads may work, the calling one included
  std::uintptr_t stream;  // CUDA: the raw cudaStream_t
};

}  // namespace pyft
