// A CUDA block on the CPU, for tests: every thread is a fiber, and fibers are switched where threads wait.
//
//     run(shape, kernel)        one block after another, in an order drawn from the seed
//       block                   its threads, the next one drawn among those that can go on
//         synchronize_block     all threads of the block
//         collective            the lanes of a warp that a mask names; the last to come does the work of all
//         copy_async, ..        done when it is waited for; until then the destination holds poison
//         wait_barrier, ..      mbarriers; copies that arrive at one are done when no thread can go on
//
// It refuses what would hang or give a wrong number on hardware: threads that wait for each other forever
// (the error says where each of them is), lanes that meet in different collectives, a barrier that some
// threads have left, an mbarrier that is not initialised, copies that are never waited for, writes past the
// end of shared memory, shared memory read before it is written (it holds poison). It does not show bank
// conflicts, register limits, or races that no order of threads reveals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "emulation/fiber.h"

namespace pyft::emulation {

struct Dim3 {
  unsigned x, y, z;
  constexpr Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned count() const { return x * y * z; }
};

constexpr int kWarpSize = 32;
constexpr unsigned char kPoison = 0xCD;  // in uninitialised memory: as bfloat16 or float a large number

struct LaunchShape {
  Dim3 grid, block;
  std::size_t shared_bytes;  // dynamic
};

// Of all orders drawn from now on (emulation/order.h). The same seed gives the same run.
void set_seed(std::uint64_t seed);

// Runs a kernel to its end.
void run(const LaunchShape& shape, const std::function<void()>& kernel);

// ---- what a thread of a running kernel may ask for --------------------------------------------------------

Dim3 thread_index();
Dim3 block_index();
Dim3 block_shape();
Dim3 grid_shape();
int lane();

void synchronize_block();

// The operands of the lanes, null where the mask has none; the lane that performs writes each result there.
using Operands = void* const*;
using Perform = void (*)(Operands operands, std::uint32_t mask);

// Meets the lanes of `mask` in the collective called `name`, which they must all give, and returns when the
// last of them has performed it.
void collective(const char* name, std::uint32_t mask, void* operands, Perform perform);

unsigned char* dynamic_shared();

// The block's array that belongs to `key`, made when the first thread asks.
void* shared_array(const void* key, std::size_t bytes, std::size_t alignment);

// cp.async: `bytes` of them are read at the wait, the others of `size` become zero.
void copy_async(void* to, const void* from, int size, int bytes);
void commit_async();
// Returns when no more than the newest `num_left` groups of this thread are under way.
void wait_async(int num_left);

// mbarrier: 8 bytes of shared memory, begun by init_barrier (async.h). A phase ends with its `count`
// arrivals, and the next begins.
using Barrier = std::uint64_t;
void arrive_barrier(Barrier* barrier);
// Arrives once all copies that this thread has begun are done, and takes them out of its groups.
void arrive_barrier_after_copies(Barrier* barrier);
// Returns when the phase of this parity, the current one or the one before, has ended.
void wait_barrier(Barrier* barrier, int parity);

}  // namespace pyft::emulation
