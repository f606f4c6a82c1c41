// What csrc/emulation promises: correct kernels give the right result in every order of threads, and each kind
// of mistake is caught. Prints the first broken promise and exits 1.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>

#include "cuda/device/async_copy.h"
#include "cuda/device/mma.h"
#include "cuda/device/warp.h"

using namespace pyft;
using cuda::kAllLanes;

void check_barriers();  // emulation_barriers.cpp

void require(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("broken: %s\n", what.c_str());
  std::exit(1);
}

namespace {

void run(unsigned num_blocks, unsigned num_threads, std::size_t shared_bytes,
         const std::function<void()>& kernel) {
  emulation::run({dim3(num_blocks), dim3(num_threads), shared_bytes}, kernel);
}

// The message of the error that a kernel ends with.
std::string error_of(unsigned num_threads, std::size_t shared_bytes, const std::function<void()>& kernel) {
  try {
    run(1, num_threads, shared_bytes, kernel);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void require_error(const char* what, const std::string& part, unsigned num_threads, std::size_t shared_bytes,
                   const std::function<void()>& kernel) {
  const std::string error = error_of(num_threads, shared_bytes, kernel);
  require(error.find(part) != std::string::npos, std::string(what) + ": \"" + error + "\"");
}

// ---- correct kernels, in every order ----------------------------------------------------------------------

void check_orders() {
  int first_done[2] = {};
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    emulation::set_seed(seed);
    int out[3][64] = {}, num_done = 0, first = 0;
    run(3, 64, 64 * sizeof(int), [&] {
      int* const shared = reinterpret_cast<int*>(cuda::dynamic_shared());
      const unsigned thread = threadIdx.x;
      shared[thread] = static_cast<int>(thread);
      __syncthreads();
      const int value = shared[63 - thread];
      __syncthreads();
      shared[thread] = 2 * value;
      __syncthreads();
      out[blockIdx.x][thread] = shared[63 - thread];
      if (num_done++ == 0) first = static_cast<int>(blockIdx.x * 64 + thread);
    });
    for (const auto& block : out) {
      for (int i = 0; i < 64; ++i) require(block[i] == 2 * i, "barriers keep shared memory in order");
    }
    first_done[seed % 2] = first;
  }
  require(first_done[0] != first_done[1], "seeds give different orders");
}

void check_collectives() {
  int failed = 0;
  run(2, 96, 0, [&] {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int value = 100 * warp + lane;
    bool good = __shfl_sync(kAllLanes, value, 5) == 100 * warp + 5;
    good = good && __shfl_xor_sync(kAllLanes, value, 3) == 100 * warp + (lane ^ 3);
    good = good && __shfl_down_sync(kAllLanes, value, 8) == 100 * warp + (lane < 24 ? lane + 8 : lane);
    good = good && __ballot_sync(kAllLanes, lane % 3 == 0) == 0x49249249u;
    good = good && cuda::reduce_lanes<8>(lane, cuda::Sum()) == 8 * (lane / 8 * 8) + 28;
    // Two halves of a warp, each by itself, one of them more often.
    const std::uint32_t half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    for (int i = 0; i < (lane < 16 ? 3 : 1); ++i)
      good = good && __shfl_sync(half, value, lane / 16 * 16 + i) == 100 * warp + lane / 16 * 16 + i;
    PYFT_SHARED(int, exchange, 32);
    good = good && cuda::reduce_block(1, 0, exchange, cuda::Sum()) == 96;
    failed += !good;
  });
  require(failed == 0, "collectives give each lane its result");
}

// C = A B of one warp, with A and B by ldmatrix from shared memory that cp.async has filled.
void check_tensor_cores() {
  alignas(16) BFloat16Bits a[16][16], b[16][8];
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) a[i][k] = float_to_bfloat16(static_cast<float>((3 * i + 5 * k) % 17 - 8));
    for (int j = 0; j < 8; ++j) b[i][j] = float_to_bfloat16(static_cast<float>((7 * i + 2 * j) % 13 - 6));
  }
  float c[16][8];
  run(1, 32, 16 * 16 * 2 + 16 * 8 * 2, [&] {
    const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
    BFloat16Bits* const a_shared = reinterpret_cast<BFloat16Bits*>(cuda::dynamic_shared());
    BFloat16Bits* const b_shared = a_shared + 16 * 16;
    cuda::copy_async16(a_shared + 8 * lane, &a[0][0] + 8 * lane);
    cuda::copy_async_commit();
    if (lane < 16) cuda::copy_async16(b_shared + 8 * lane, &b[0][0] + 8 * lane);
    cuda::copy_async_commit();
    cuda::copy_async_wait<0>();
    __syncthreads();
    std::uint32_t a_words[4], b_words[4];
    // Matrices 0 and 1 are rows 0..7 and 8..15 of the left half of A, 2 and 3 of the right half.
    cuda::load_matrices<false>(a_words, a_shared + (lane % 16) * 16 + lane / 16 * 8);
    cuda::load_matrices<true>(b_words, b_shared + (lane % 16) * 8);
    float sums[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    cuda::mma_bf16(sums, a_words, {b_words[0], b_words[1]});
    for (int i = 0; i < 4; ++i) c[g + i / 2 * 8][2 * t + i % 2] = sums[i];
  });
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float sum = 1.0f;
      for (int k = 0; k < 16; ++k) sum += bfloat16_to_float(a[i][k]) * bfloat16_to_float(b[k][j]);
      require(c[i][j] == sum, "mma, ldmatrix and cp.async make a product");
    }
  }
}

void check_short_copies() {
  alignas(16) unsigned char from[16], to[16] = {};
  for (int i = 0; i < 16; ++i) from[i] = static_cast<unsigned char>(i + 1);
  run(1, 32, 16, [&] {
    unsigned char* const shared = cuda::dynamic_shared();
    if (threadIdx.x == 0) cuda::copy_async16(shared, from, 5);
    cuda::copy_async_commit();
    cuda::copy_async_wait<0>();
    __syncthreads();
    if (threadIdx.x < 16) to[threadIdx.x] = shared[threadIdx.x];
  });
  for (int i = 0; i < 16; ++i) require(to[i] == (i < 5 ? i + 1 : 0), "a short copy ends with zeros");
}

// ---- mistakes ---------------------------------------------------------------------------------------------

void check_stuck_threads() {
  require_error("a barrier that some threads pass by", "is stuck", 64, 0, [] {
    if (threadIdx.x < 40) __syncthreads();
  });
  require_error("a barrier inside a branch, a collective in the other", "at __shfl_sync", 32, 0, [] {
    if (threadIdx.x == 7) {
      __syncthreads();
    } else {
      __shfl_sync(kAllLanes, 1, 0);
    }
  });
  require_error("a lane that has left", "has left the kernel", 32, 0, [] {
    if (threadIdx.x == 31) return;
    for (int i = 0; i < 3; ++i) __syncwarp(0x7fffffffu);
    __syncwarp();
  });
}

void check_divergence() {
  require_error("lanes in different collectives", "the warp has diverged", 32, 0, [] {
    if (threadIdx.x % 2) {
      __shfl_sync(kAllLanes, 1, 0);
    } else {
      __ballot_sync(kAllLanes, 1);
    }
  });
  require_error("lanes with different masks", "another mask", 32, 0,
                [] { __shfl_sync(threadIdx.x < 16 ? kAllLanes : 0xfffffffeu, 1, 16); });
  require_error("a mask without the lane", "leaves out the lane itself", 32, 0, [] { __syncwarp(1u); });
  require_error("lanes that the block does not have", "which the block does not have", 16, 0,
                [] { __syncwarp(); });
}

void check_missing_barrier() {
  int num_wrong = 0;
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    emulation::set_seed(seed);
    run(1, 64, 0, [&] {
      PYFT_SHARED(int, values, 64);
      values[threadIdx.x] = 7;
      if (values[63 - threadIdx.x] != 7) ++num_wrong;
    });
  }
  require(num_wrong > 0, "a missing barrier shows");
}

void check_async_mistakes() {
  alignas(16) float from[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  float seen[2] = {};
  const auto kernel = [&](bool waits) {
    return [&from, &seen, waits] {
      float* const shared = reinterpret_cast<float*>(cuda::dynamic_shared());
      if (threadIdx.x == 0) cuda::copy_async16(shared, from);
      cuda::copy_async_commit();
      if (waits) cuda::copy_async_wait<0>();
      __syncthreads();
      if (threadIdx.x == 0) seen[waits] = shared[2];
      cuda::copy_async_wait<0>();
    };
  };
  run(1, 32, 16, kernel(true));
  run(1, 32, 16, kernel(false));
  require(seen[1] == 3.0f && seen[0] != 3.0f, "a missing wait shows");
  require_error("copies nobody waits for", "never waited for", 32, 16, [&] {
    if (threadIdx.x == 3) cuda::copy_async16(cuda::dynamic_shared(), from);
    cuda::copy_async_commit();
  });
  // A wait for one group too few: the newest is still under way.
  float last = 0.0f;
  run(1, 32, 32, [&] {
    float* const shared = reinterpret_cast<float*>(cuda::dynamic_shared());
    for (int stage = 0; stage < 2; ++stage) {
      if (threadIdx.x == 0) cuda::copy_async16(shared + 4 * stage, from);
      cuda::copy_async_commit();
    }
    cuda::copy_async_wait<1>();
    if (threadIdx.x == 0) {
      require(shared[0] == 1.0f, "the older group has come");
      last = shared[4];
    }
    cuda::copy_async_wait<0>();
  });
  require(last != 1.0f, "the newest group has not");
}

void check_shared_memory() {
  float first = 0.0f;
  run(1, 32, 64, [&] {
    if (threadIdx.x == 0) first = reinterpret_cast<float*>(cuda::dynamic_shared())[3];
  });
  require(first < -1e8f, "shared memory begins as poison");
  int num_poisoned = 0;
  run(4, 32, 0, [&] {
    PYFT_SHARED(int, values, 8);
    if (threadIdx.x == 0) num_poisoned += values[0] != 1;
    __syncthreads();
    values[threadIdx.x % 8] = 1;
  });
  require(num_poisoned == 4, "every block begins with poison");
#if !defined(__SANITIZE_ADDRESS__)
  require_error("a tile that is one element too long", "behind the end of its shared memory", 32, 31 * 4,
                [] { reinterpret_cast<int*>(cuda::dynamic_shared())[threadIdx.x] = 0; });
#endif
}

void check_errors_inside() {
  require_error("an error of a thread ends the kernel", "thread 5", 32, 0, [] {
    if (threadIdx.x == 5) fail(ErrorKind::kRuntime, "thread 5");
    __syncthreads();
  });
  int num_run = 0;
  run(1, 32, 0, [&] { ++num_run; });
  require(num_run == 32, "the next kernel runs after an error");
}

}  // namespace

int main() {
  check_orders();
  check_collectives();
  check_tensor_cores();
  check_short_copies();
  check_stuck_threads();
  check_divergence();
  check_missing_barrier();
  check_async_mistakes();
  check_barriers();
  check_shared_memory();
  check_errors_inside();
  std::printf("all kept\n");
  return 0;
}
