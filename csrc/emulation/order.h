// In what order threads and blocks run: drawn from a seed. With an even seed every thread that can go on is
// as likely as the next, so warps keep nearly abreast; with an odd one each block draws an order of
// precedence for its warps, so that some run as far ahead as waiting lets them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace pyft::emulation {

class Order {
 public:
  static Order& current() {
    thread_local Order order;
    return order;
  }
  void set_seed(std::uint64_t seed) {
    random_.seed(seed);
    has_precedence_ = seed % 2 == 1;
  }
  std::size_t draw(std::size_t count) { return static_cast<std::size_t>(random_() % count); }

  void begin_block(std::size_t num_warps) {
    precedence_.clear();
    if (!has_precedence_) return;
    for (std::size_t warp = 0; warp < num_warps; ++warp) precedence_.push_back(random_());
  }

  // The place of the thread that goes on. `warp_of` says the warp of that at a place.
  template <typename WarpOf>
  std::size_t pick(std::size_t num_ready, const WarpOf& warp_of) {
    constexpr int kCandidates = 16;
    std::size_t best = draw(num_ready);
    if (precedence_.empty()) return best;
    for (int i = 1; i < kCandidates; ++i) {
      const std::size_t other = draw(num_ready);
      if (precedence_[warp_of(other)] > precedence_[warp_of(best)]) best = other;
    }
    return best;
  }

 private:
  std::mt19937_64 random_{0};
  bool has_precedence_ = false;
  std::vector<std::uint64_t> precedence_;
};

}  // namespace pyft::emulation
