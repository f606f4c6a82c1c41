#include "cpu/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace pyft::cpu {
namespace {

using Body = std::function<void(std::int64_t, std::int64_t)>;

thread_local bool inside_parallel_for = false;

// One call of parallel_for, shared by the threads that work on it.
struct Job {
  Job(const Body& body, std::int64_t n, std::int64_t grain) : body(body), n(n), grain(grain) {}

  // Takes pieces until none is left.
  void work() {
    inside_parallel_for = true;
    for (;;) {
      const std::int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= n) break;
      try {
        body(begin, std::min(n, begin + grain));
      } catch (...) {
        const std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(n, std::memory_order_relaxed);
      }
    }
    inside_parallel_for = false;
  }

  const Body& body;
  const std::int64_t n;
  const std::int64_t grain;
  std::atomic<std::int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;
};

// OMP_PROC_BIND and its kin make torch's OpenMP runtime pin the main thread to one core when torch is
// imported. A new thread inherits that mask, so all workers would share the core of the thread they are to
// help.
void leave_inherited_core() {
  const char* bind = std::getenv("OMP_PROC_BIND");
  if (!bind && !std::getenv("GOMP_CPU_AFFINITY") && !std::getenv("KMP_AFFINITY")) return;
  cpu_set_t every_core;
  CPU_ZERO(&every_core);
  for (int core = 0; core < CPU_SETSIZE; ++core) CPU_SET(core, &every_core);
  sched_setaffinity(0, sizeof every_core,
                    &every_core);  // the kernel keeps only the cores this process may use
}

// Workers sleep until a job offers seats; each takes one seat, works, and reports back.
class Pool {
 public:
  // Held by the one caller that uses the pool.
  std::mutex user_mutex;

  void run(Job& job, int num_helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (num_workers_ < num_helpers && start_worker()) ++num_workers_;
      job_ = &job;
      free_seats_ = num_helpers;
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    free_seats_ = 0;
    idle_.wait(lock, [this] { return num_busy_ == 0; });
  }

 private:
  // Signals stay with Python's threads. False when the system grants no more threads: fewer then do the same
  // work.
  bool start_worker() {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = true;
    try {
      std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      started = false;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return started;
  }

  void serve() {
    leave_inherited_core();
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return free_seats_ > 0; });
      Job* job = job_;
      --free_seats_;
      ++num_busy_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--num_busy_ == 0) idle_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable idle_;
  Job* job_ = nullptr;
  int free_seats_ = 0;
  int num_busy_ = 0;
  int num_workers_ = 0;
};

// Never freed: the workers sleep in it until the process ends. A forked child has none of its parent's
// threads, and the mutexes may be held by threads that no longer exist, so the child forgets the pool and
// makes its own.
std::atomic<Pool*> current_pool{nullptr};

void forget_pool_in_child() {
  current_pool.store(nullptr, std::memory_order_relaxed);
  inside_parallel_for = false;
}

Pool& pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool_in_child);
  static_cast<void>(registered);
  Pool* existing = current_pool.load(std::memory_order_acquire);
  if (existing) return *existing;
  Pool* made = new Pool;
  if (current_pool.compare_exchange_strong(existing, made, std::memory_order_acq_rel)) return *made;
  delete made;  // another thread was first; this one has started no workers
  return *existing;
}

}  // namespace

void parallel_for(int num_threads, std::int64_t n, std::int64_t grain, const Body& body) {
  if (n <= 0) return;
  grain = std::max<std::int64_t>(grain, 1);
  const std::int64_t num_pieces = (n + grain - 1) / grain;
  const int num_helpers = static_cast<int>(std::min<std::int64_t>(num_threads, num_pieces)) - 1;
  if (num_helpers > 0 && !inside_parallel_for) {
    Pool& shared = pool();
    const std::unique_lock<std::mutex> user(shared.user_mutex, std::try_to_lock);
    if (user.owns_lock()) {
      Job job(body, n, grain);
      shared.run(job, num_helpers);
      if (job.error) std::rethrow_exception(job.error);
      return;
    }
  }
  for (std::int64_t begin = 0; begin < n; begin += grain) body(begin, std::min(n, begin + grain));
}

}  // namespace pyft::cpu
