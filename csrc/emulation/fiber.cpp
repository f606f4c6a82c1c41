#include "emulation/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <vector>

#include "pyft/error.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#error "fibers are written for x86-64 and AArch64"
#endif

// void switch_stacks(void** save, void* to): pushes what the calling convention lets a function keep, stores
// the stack pointer in *save, and takes up the other stack, pushed the same way.
extern "C" void pyft_switch_stacks(void** save, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.globl pyft_switch_stacks
.hidden pyft_switch_stacks
.type pyft_switch_stacks, @function
pyft_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pyft_switch_stacks, .-pyft_switch_stacks
)");
#else
asm(R"(
.text
.globl pyft_switch_stacks
.hidden pyft_switch_stacks
.type pyft_switch_stacks, %function
pyft_switch_stacks:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size pyft_switch_stacks, .-pyft_switch_stacks
)");
#endif

namespace pyft::emulation {
namespace {

constexpr std::size_t kStackBytes = 64 << 10;
constexpr std::size_t kGuardBytes = 4 << 10;  // below it: running over a stack's end is a fault, not a riddle

// Stacks that fibers have left, for the next ones: a kernel has hundreds of fibers, a test many kernels.
class FreeStacks {
 public:
  ~FreeStacks() {
    for (char* stack : stacks_) munmap(stack - kGuardBytes, kGuardBytes + kStackBytes);
  }
  char* take() {
    if (!stacks_.empty()) {
      char* const stack = stacks_.back();
      stacks_.pop_back();
      return stack;
    }
    void* const memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail(ErrorKind::kRuntime, "emulation: no memory for a thread's stack");
    mprotect(memory, kGuardBytes, PROT_NONE);
    return static_cast<char*>(memory) + kGuardBytes;
  }
  void give(char* stack) { stacks_.push_back(stack); }

 private:
  std::vector<char*> stacks_;
};
thread_local FreeStacks free_stacks;

thread_local Fiber* running = nullptr;  // the one that was switched to last
thread_local Fiber* previous = nullptr;

}  // namespace

// Frames that were never left are still poisoned, for the stack's next use and for its memory's next owner.
void Fiber::forget_frames() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
}

Fiber::~Fiber() {
  if (!stack_) return;
  forget_frames();
  free_stacks.give(stack_);
}

void Fiber::begin(void (*entry)(void*), void* argument) {
  if (!stack_) stack_ = free_stacks.take();
  forget_frames();
  entry_ = entry;
  argument_ = argument;
  fake_stack_ = nullptr;
  stack_bottom_ = stack_;
  stack_bytes_ = kStackBytes;
  // As pyft_switch_stacks leaves a stack, with started() to return to.
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes);
#if defined(__x86_64__)
  *--top = nullptr;  // a function begins with the stack 8 below a multiple of 16
  *--top = reinterpret_cast<void*>(&Fiber::started);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
#else
  top -= 20;
  for (int i = 0; i < 20; ++i) top[i] = nullptr;
  top[11] = reinterpret_cast<void*>(&Fiber::started);  // x30
#endif
  stack_pointer_ = top;
}

void Fiber::switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool for_good) {
  running = &to;
  previous = &from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack_, to.stack_bottom_, to.stack_bytes_);
#endif
  pyft_switch_stacks(&from.stack_pointer_, to.stack_pointer_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack_, &previous->stack_bottom_, &previous->stack_bytes_);
#endif
}

void Fiber::started() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &previous->stack_bottom_, &previous->stack_bytes_);
#endif
  running->entry_(running->argument_);
  __builtin_trap();  // entry returned
}

}  // namespace pyft::emulation
