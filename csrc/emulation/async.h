// What is under way on the side: cp.async copies, in groups of the thread that began them, and the mbarriers
// at which they arrive.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "emulation/block.h"
#include "pyft/error.h"

namespace pyft::emulation {

struct AsyncCopy {
  void* to;
  const void* from;
  int size, bytes;
};
using AsyncGroup = std::vector<AsyncCopy>;

inline void perform(const AsyncGroup& group) {
  for (const AsyncCopy& copy : group) {
    std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
    std::memset(static_cast<char*>(copy.to) + copy.bytes, 0,
                static_cast<std::size_t>(copy.size - copy.bytes));
  }
}

// Of one thread.
class AsyncCopies {
 public:
  void forget() {
    open_.clear();
    committed_.clear();
  }
  void begin(const AsyncCopy& copy) {
    std::memset(copy.to, kPoison, static_cast<std::size_t>(copy.size));
    open_.push_back(copy);
  }
  void commit() {
    committed_.push_back(std::move(open_));
    open_.clear();
  }
  void wait(int num_left) {
    while (static_cast<int>(committed_.size()) > num_left) {
      perform(committed_.front());
      committed_.pop_front();
    }
  }
  // All of them; they arrive when the taker performs them.
  AsyncGroup take() {
    commit();
    AsyncGroup all;
    for (const AsyncGroup& group : committed_) all.insert(all.end(), group.begin(), group.end());
    committed_.clear();
    return all;
  }
  bool are_under_way() const {
    bool has_any = !open_.empty();
    for (const AsyncGroup& group : committed_) has_any = has_any || !group.empty();
    return has_any;
  }

 private:
  AsyncGroup open_;
  std::deque<AsyncGroup> committed_;
};

// A thread's arrival at an mbarrier when its copies are done.
struct AsyncArrival {
  Barrier* barrier;
  AsyncGroup copies;
};

// An mbarrier as it lies in shared memory.
struct BarrierState {
  static constexpr std::uint16_t kMark = 0xB0A7;
  std::uint16_t mark, count, pending, parity;
};
static_assert(sizeof(BarrierState) == sizeof(Barrier));

inline void init_barrier(Barrier* barrier, int count) {
  const auto arrivals = static_cast<std::uint16_t>(count);
  const BarrierState state{BarrierState::kMark, arrivals, arrivals, 0};
  std::memcpy(barrier, &state, sizeof state);
}

inline BarrierState read_barrier(const char* what, const Barrier* barrier) {
  BarrierState state;
  std::memcpy(&state, barrier, sizeof state);
  if (state.mark != BarrierState::kMark)
    fail(ErrorKind::kRuntime, what, " an mbarrier that nobody has initialised");
  return state;
}

// Whether this arrival ends the phase.
inline bool count_arrival(Barrier* barrier) {
  BarrierState state = read_barrier("arrival at", barrier);
  const bool is_last = --state.pending == 0;
  if (is_last) {
    state.pending = state.count;
    state.parity ^= 1;
  }
  std::memcpy(barrier, &state, sizeof state);
  return is_last;
}

}  // namespace pyft::emulation
