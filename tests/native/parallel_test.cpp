// What parallel.h promises, checked from several threads; prints the first broken promise and exits 1.
#include "cpu/parallel.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using pyft::cpu::parallel_for;

namespace {

void require(bool condition, const char* what) {
  if (condition) return;
  std::printf("broken: %s\n", what);
  std::exit(1);
}

// Every index once, in pieces of the grain, whatever the number of threads.
void check_pieces() {
  for (int num_threads : {1, 2, 3, 16}) {
    for (std::int64_t n : {0, 1, 7, 64, 1000}) {
      for (std::int64_t grain : {0, 1, 5, 64, 5000}) {
        std::vector<std::atomic<int>> seen(static_cast<std::size_t>(n));
        std::atomic<bool> aligned{true};
        const std::int64_t unit = grain > 0 ? grain : 1;
        parallel_for(num_threads, n, grain, [&](std::int64_t begin, std::int64_t end) {
          if (begin % unit || end != (begin + unit < n ? begin + unit : n)) aligned = false;
          for (std::int64_t i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
        });
        require(aligned, "pieces are whole grains");
        for (const std::atomic<int>& count : seen) require(count == 1, "every index is visited once");
      }
    }
  }
}

void check_exceptions() {
  for (int round = 0; round < 50; ++round) {
    std::string caught;
    std::atomic<int> visited{0};
    try {
      parallel_for(3, 1000, 1, [&](std::int64_t begin, std::int64_t) {
        ++visited;
        if (begin == 10) throw std::runtime_error("ten");
      });
    } catch (const std::runtime_error& error) {
      caught = error.what();
    }
    require(caught == "ten", "an exception reaches the caller");
    int count = 0;
    parallel_for(3, 10, 1, [&](std::int64_t, std::int64_t) { static_cast<void>(count); });
  }
}

void check_nesting() {
  std::atomic<int> visited{0};
  parallel_for(3, 8, 1, [&](std::int64_t, std::int64_t) {
    const std::thread::id outer = std::this_thread::get_id();
    parallel_for(3, 8, 1, [&](std::int64_t, std::int64_t) {
      require(std::this_thread::get_id() == outer, "a nested call stays on its thread");
      ++visited;
    });
  });
  require(visited == 64, "nested calls do all their work");
}

void check_callers() {
  std::atomic<long> total{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        parallel_for(4, 100, 3, [&](std::int64_t begin, std::int64_t end) { total += end - begin; });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  require(total == 4L * 200 * 100, "several callers get all their work done");
}

}  // namespace

int main() {
  check_pieces();
  check_exceptions();
  check_nesting();
  check_callers();
  std::printf("all kept\n");
  return 0;
}
