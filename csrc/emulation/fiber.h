// Fibers: functions that stop in the middle and go on later, each on a stack of its own. One CUDA thread is
// one fiber. Switching saves the callee-saved registers and swaps stack pointers, a few nanoseconds; under
// AddressSanitizer it is told which stack is in use.
#pragma once

#include <cstddef>

namespace pyft::emulation {

class Fiber {
 public:
  Fiber() = default;  // the caller's own stack
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Sets the fiber to begin `entry(argument)` when it is first switched to; entry must never return. A fiber
  // that has ended by switching away for good may begin again: its stack is kept.
  void begin(void (*entry)(void*), void* argument);

  // Stops `from`, the fiber that runs, and goes on where `to` stopped. `for_good`: `from` will not be
  // switched to again before it starts over.
  static void switch_to(Fiber& from, Fiber& to, bool for_good = false);

 private:
  static void started();
  void forget_frames();

  void* stack_pointer_ = nullptr;
  char* stack_ = nullptr;  // null for the caller's own
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  // AddressSanitizer's own state, and where the stack lies.
  void* fake_stack_ = nullptr;
  const void* stack_bottom_ = nullptr;
  std::size_t stack_bytes_ = 0;
};

}  // namespace pyft::emulation
