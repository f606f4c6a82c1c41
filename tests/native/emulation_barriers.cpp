// What csrc/emulation promises of mbarriers: a pipeline of copies that keeps their rules is right in every
// order of threads, and each way of breaking them shows. Part of emulation_test.cpp.
#include <string>

#include "cuda/device/async_copy.h"
#include "cuda/device/barrier.h"

using namespace pyft;

void require(bool condition, const std::string& what);  // emulation_test.cpp

namespace {

// Two stages that all threads fill and read in turn: 8 fills, each thread reads what its opposite brought.
enum class Mistake { kNone, kNoWaitForFull, kWrongPhase, kNoWaitForEmpty, kMissingArrive, kNoBarrier };

int wrong_in_pipeline(Mistake mistake) {
  constexpr int kThreads = 64, kStages = 2, kFills = 8;
  alignas(16) static float from[kFills][kThreads][4];
  for (int i = 0; i < kFills * kThreads; ++i) from[i / kThreads][i % kThreads][0] = static_cast<float>(i);
  int num_wrong = 0;
  emulation::run({dim3(1), dim3(kThreads), sizeof(float) * kStages * kThreads * 4}, [&] {
    auto* const stages = reinterpret_cast<float (*)[kThreads][4]>(cuda::dynamic_shared());
    PYFT_SHARED(cuda::Barrier, full, kStages);
    PYFT_SHARED(cuda::Barrier, empty, kStages);
    const int thread = static_cast<int>(threadIdx.x);
    if (mistake != Mistake::kNoBarrier && thread < kStages) {
      cuda::barrier_init(full + thread, kThreads);
      cuda::barrier_init(empty + thread, kThreads / 32);
    }
    __syncthreads();
    const auto fill = [&](int n) {
      const int stage = n % kStages;
      if (mistake != Mistake::kNoWaitForEmpty) cuda::barrier_wait(empty + stage, (n / kStages + 1) % 2);
      cuda::copy_async16(stages[stage][thread], from[n][thread]);
      cuda::barrier_arrive_after_copies(full + stage);
    };
    fill(0);
    for (int n = 0; n < kFills; ++n) {
      const int stage = n % kStages, phase = n / kStages % 2;
      if (n + 1 < kFills) fill(n + 1);
      if (mistake != Mistake::kNoWaitForFull)
        cuda::barrier_wait(full + stage, mistake == Mistake::kWrongPhase ? 1 - phase : phase);
      num_wrong += stages[stage][kThreads - 1 - thread][0] != from[n][kThreads - 1 - thread][0];
      __syncwarp();
      if (mistake == Mistake::kMissingArrive && thread == 32) continue;
      if (thread % 32 == 0) cuda::barrier_arrive(empty + stage);
    }
  });
  return num_wrong;
}

void check_pipeline() {
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    emulation::set_seed(seed);
    require(wrong_in_pipeline(Mistake::kNone) == 0, "mbarriers keep a pipeline in order");
  }
}

void check_barrier_mistakes() {
  // Either numbers are wrong, or an error says so; the parts of the message tell which.
  const auto shows = [](const char* what, Mistake mistake, const std::string& part) {
    bool is_seen = false;
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      emulation::set_seed(seed);
      try {
        is_seen = wrong_in_pipeline(mistake) > 0 || is_seen;
      } catch (const Error& error) {
        const std::string text = error.what();
        require(!part.empty() && text.find(part) != std::string::npos, std::string(what) + ": " + text);
        is_seen = true;
      }
    }
    require(is_seen, std::string(what) + " shows");
  };
  shows("a missing wait for the copies", Mistake::kNoWaitForFull, "at their mbarrier");
  shows("a wait for the wrong phase", Mistake::kWrongPhase, "mbarrier");
  shows("a missing wait for the readers", Mistake::kNoWaitForEmpty, "");
  shows("a missing arrival", Mistake::kMissingArrive, "is stuck");
  shows("a barrier without a count", Mistake::kNoBarrier, "nobody has initialised");
}

}  // namespace

void check_barriers() {
  check_pipeline();
  check_barrier_mistakes();
}
