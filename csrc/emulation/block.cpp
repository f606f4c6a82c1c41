#include "emulation/block.h"

#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <string>

#include "emulation/async.h"
#include "emulation/order.h"
#include "emulation/shared_bytes.h"
#include "pyft/error.h"

namespace pyft::emulation {
namespace {

constexpr std::size_t kAlignment = 1024;  // of shared memory: what bulk copies with a swizzle need

struct Thread {
  Fiber fiber;
  Dim3 index;
  int rank = 0;
  bool done = false;
  const char* waits_at = nullptr;  // null: it can go on
  std::uint32_t mask = 0;          // of the collective it waits in
  void* operands = nullptr;
  const Barrier* barrier = nullptr;  // the one it waits for
  AsyncCopies copies;
};

std::size_t draw(std::size_t count) { return Order::current().draw(count); }

std::string text_of(const Dim3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

class Block {
 public:
  Block(const LaunchShape& shape, const std::function<void()>& kernel)
      : shape_(shape), kernel_(kernel), threads_(shape.block.count()) {}

  void run(Dim3 index);

  // Of the thread that runs.
  void wait_at(const char* place);
  void barrier();
  void meet(const char* name, std::uint32_t mask, void* operands, Perform perform);
  void* array(const void* key, std::size_t bytes, std::size_t alignment) {
    return arrays_.try_emplace(key, bytes, alignment).first->second.begin();
  }
  void arrive(Barrier* barrier);
  void arrive_after_copies(Barrier* barrier);
  void wait_phase(Barrier* barrier, int parity);

  const LaunchShape& shape() const { return shape_; }
  Dim3 index() const { return index_; }
  Thread& current() const { return *current_; }
  unsigned char* dynamic() const { return dynamic_->begin(); }

 private:
  static void thread_entry(void* block);
  void start_threads();
  void wake(Thread& thread) {
    thread.waits_at = nullptr;
    ready_.push_back(&thread);
  }
  void perform_arrival();
  void check_end() const;
  [[noreturn]] void fail_stuck() const;
  Thread* lane_of(const Thread& thread, int lane);

  const LaunchShape& shape_;
  const std::function<void()>& kernel_;
  Dim3 index_;
  std::deque<Thread> threads_;
  std::vector<Thread*> ready_;
  std::vector<AsyncArrival> arrivals_;
  std::size_t num_at_barrier_ = 0, num_done_ = 0;
  Thread* current_ = nullptr;
  Fiber scheduler_;
  std::exception_ptr error_;
  std::unique_ptr<SharedBytes> dynamic_;
  std::map<const void*, SharedBytes> arrays_;
};

thread_local Block* running = nullptr;

void Block::run(Dim3 index) {
  index_ = index;
  num_at_barrier_ = num_done_ = 0;
  error_ = nullptr;
  arrivals_.clear();
  arrays_.clear();
  dynamic_ = std::make_unique<SharedBytes>(shape_.shared_bytes, kAlignment);
  start_threads();
  Order::current().begin_block((threads_.size() + kWarpSize - 1) / kWarpSize);
  while (num_done_ < threads_.size()) {
    while (ready_.empty() && !arrivals_.empty()) perform_arrival();
    if (ready_.empty()) fail_stuck();
    const std::size_t place = Order::current().pick(
        ready_.size(), [&](std::size_t i) { return static_cast<std::size_t>(ready_[i]->rank / kWarpSize); });
    std::swap(ready_[place], ready_.back());
    current_ = ready_.back();
    ready_.pop_back();
    Fiber::switch_to(scheduler_, current_->fiber);
    if (error_) std::rethrow_exception(error_);
  }
  check_end();
}

void Block::start_threads() {
  ready_.clear();
  int rank = 0;
  for (Thread& thread : threads_) {
    const Dim3& size = shape_.block;
    const unsigned flat = static_cast<unsigned>(rank);
    thread.index = Dim3(flat % size.x, flat / size.x % size.y, flat / (size.x * size.y));
    thread.rank = rank++;
    thread.done = false;
    thread.waits_at = nullptr;
    thread.barrier = nullptr;
    thread.copies.forget();
    thread.fiber.begin(&Block::thread_entry, this);
    ready_.push_back(&thread);
  }
}

void Block::thread_entry(void* self) {
  Block& block = *static_cast<Block*>(self);
  try {
    block.kernel_();
    const Thread& thread = block.current();
    if (thread.copies.are_under_way())
      fail(ErrorKind::kRuntime, "thread ", text_of(thread.index),
           " ends with async copies it never waited for");
  } catch (...) {
    block.error_ = std::current_exception();
  }
  block.current().done = true;
  ++block.num_done_;
  Fiber::switch_to(block.current().fiber, block.scheduler_, true);
}

void Block::wait_at(const char* place) {
  Thread& thread = current();
  thread.waits_at = place;
  Fiber::switch_to(thread.fiber, scheduler_);
}

void Block::barrier() {
  if (++num_at_barrier_ < threads_.size()) return wait_at("__syncthreads");
  num_at_barrier_ = 0;
  for (Thread& thread : threads_) {
    if (&thread != current_) wake(thread);
  }
}

Thread* Block::lane_of(const Thread& thread, int lane) {
  const std::size_t rank = static_cast<std::size_t>(thread.rank / kWarpSize * kWarpSize + lane);
  return rank < threads_.size() ? &threads_[rank] : nullptr;
}

void Block::meet(const char* name, std::uint32_t mask, void* operands, Perform perform) {
  Thread& me = current();
  const auto refuse = [&](const auto&... parts) {
    fail(ErrorKind::kRuntime, name, " of thread ", text_of(me.index), " in block ", text_of(index_), ": ",
         parts...);
  };
  if (!(mask >> me.rank % kWarpSize & 1u)) refuse("its mask leaves out the lane itself");
  void* all[kWarpSize] = {};
  bool is_complete = true;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(mask >> lane & 1u)) continue;
    Thread* const other = lane_of(me, lane);
    if (!other) refuse("its mask names lane ", lane, ", which the block does not have");
    if (other == &me) {
      all[lane] = operands;
    } else if (other->done) {
      refuse("lane ", lane, " has left the kernel");
    } else if (!other->operands || !(other->mask >> me.rank % kWarpSize & 1u)) {
      is_complete = false;  // it may still come, perhaps after a collective of other lanes
    } else if (other->mask != mask || std::strcmp(other->waits_at, name) != 0) {
      refuse("lane ", lane, " waits for it in ", other->waits_at,
             " or with another mask: the warp has diverged");
    } else {
      all[lane] = other->operands;
    }
  }
  if (!is_complete) {
    me.mask = mask;
    me.operands = operands;
    return wait_at(name);
  }
  perform(all, mask);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!all[lane] || all[lane] == operands) continue;
    Thread& other = *lane_of(me, lane);
    other.operands = nullptr;
    wake(other);
  }
}

void Block::arrive(Barrier* barrier) {
  if (!count_arrival(barrier)) return;
  for (Thread& thread : threads_) {
    if (thread.barrier != barrier) continue;
    thread.barrier = nullptr;
    wake(thread);
  }
}

void Block::arrive_after_copies(Barrier* barrier) {
  read_barrier("arrival at", barrier);
  arrivals_.push_back({barrier, current().copies.take()});
}

void Block::wait_phase(Barrier* barrier, int parity) {
  if (read_barrier("wait for", barrier).parity != parity) return;
  current().barrier = barrier;
  wait_at(parity ? "mbarrier, phase 1" : "mbarrier, phase 0");
}

// As late as can be: a thread that does not wait sees poison.
void Block::perform_arrival() {
  std::swap(arrivals_[draw(arrivals_.size())], arrivals_.back());
  const AsyncArrival arrival = std::move(arrivals_.back());
  arrivals_.pop_back();
  perform(arrival.copies);
  arrive(arrival.barrier);
}

void Block::check_end() const {
  for (const AsyncArrival& arrival : arrivals_) {
    if (!arrival.copies.empty())
      fail(ErrorKind::kRuntime, "block ", text_of(index_),
           " never waited for async copies at their mbarrier");
  }
  bool is_whole = dynamic_->is_whole();
  for (const auto& [key, array] : arrays_) is_whole = is_whole && array.is_whole();
  if (!is_whole)
    fail(ErrorKind::kRuntime, "block ", text_of(index_), " has written behind the end of its shared memory");
}

void Block::fail_stuck() const {
  std::map<std::string, std::vector<const Thread*>> places;
  for (const Thread& thread : threads_) places[thread.done ? "its end" : thread.waits_at].push_back(&thread);
  std::string text;
  for (const auto& [place, threads] : places)
    text += (text.empty() ? "" : "; ") + std::to_string(threads.size()) + " at " + place + ", first " +
            text_of(threads.front()->index);
  fail(ErrorKind::kRuntime, "block ", text_of(index_), " is stuck, its threads wait for each other: ", text);
}

}  // namespace

void set_seed(std::uint64_t seed) { Order::current().set_seed(seed); }

void run(const LaunchShape& shape, const std::function<void()>& kernel) {
  if (running) fail(ErrorKind::kRuntime, "a kernel launches another one");
  struct Reset {
    ~Reset() { running = nullptr; }
  } reset;
  Block block(shape, kernel);
  running = &block;
  std::vector<std::size_t> order(static_cast<std::size_t>(shape.grid.count()));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (std::size_t left = order.size(); left > 0; --left) {
    std::swap(order[draw(left)], order[left - 1]);
    const unsigned flat = static_cast<unsigned>(order[left - 1]);
    block.run(
        Dim3(flat % shape.grid.x, flat / shape.grid.x % shape.grid.y, flat / (shape.grid.x * shape.grid.y)));
  }
}

Dim3 thread_index() { return running->current().index; }
Dim3 block_index() { return running->index(); }
Dim3 block_shape() { return running->shape().block; }
Dim3 grid_shape() { return running->shape().grid; }
int lane() { return running->current().rank % kWarpSize; }
void synchronize_block() { running->barrier(); }
void collective(const char* name, std::uint32_t mask, void* operands, Perform perform) {
  running->meet(name, mask, operands, perform);
}
unsigned char* dynamic_shared() { return running->dynamic(); }
void* shared_array(const void* key, std::size_t bytes, std::size_t alignment) {
  return running->array(key, bytes, alignment);
}

void copy_async(void* to, const void* from, int size, int bytes) {
  running->current().copies.begin({to, from, size, bytes});
}
void commit_async() { running->current().copies.commit(); }
void wait_async(int num_left) { running->current().copies.wait(num_left); }

void arrive_barrier(Barrier* barrier) { running->arrive(barrier); }
void arrive_barrier_after_copies(Barrier* barrier) { running->arrive_after_copies(barrier); }
void wait_barrier(Barrier* barrier, int parity) { running->wait_phase(barrier, parity); }

}  // namespace pyft::emulation
