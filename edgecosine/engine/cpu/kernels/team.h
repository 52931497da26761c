// The threads of this process among which a product is divided.

#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Members wait for the next part of a pass without sleeping, since waking one takes longer than a small
// product, and sleep between passes.
class Team {
 public:
  static Team& of_process() {
    static Team* team = new Team;              // its threads outlive all destructors
    return *team;
  }

  static constexpr int kPartsBits = 10, kMostParts = (1 << kPartsBits) - 1;

  // Calls work(part) for all parts, part 0 on this thread. A caller that finds the team busy or without
  // members does all parts itself.
  template <class Work>
  void run(int parts, const Work& work) {
    std::unique_lock<std::mutex> turn(turn_, std::defer_lock);
    if (parts <= 1 || !turn.try_lock() || !has_members(parts - 1)) {
      for (int part = 0; part < parts; part++) work(part);
      return;
    }
    work_ = &work;
    call_ = [](const void* what, int part) { (*static_cast<const Work*>(what))(part); };
    unfinished_ = parts - 1;
    order_ = ((order_ >> kPartsBits) + 1) << kPartsBits | parts;
    if (asleep_ > 0) {
      std::lock_guard<std::mutex> lock(sleep_);
      wake_.notify_all();
    }
    work(0);
    for (int turns = 0; unfinished_.load(std::memory_order_acquire) > 0; turns++)
      turns < kTurns ? pause_briefly() : std::this_thread::yield();
  }

 private:
  static constexpr int kTurns = 1000;          // tens of microseconds

  // Whether there are this many members; a forked process has none.
  bool has_members(int count) {
    if (process_ != getpid()) return false;
    try {
      for (; members_ < count; members_++) std::thread(&Team::serve, this, members_ + 1).detach();
    } catch (const std::system_error&) {       // beyond the machine's limit of threads
      return false;
    }
    return true;
  }

  void serve(int part) {
    for (uint64_t known = 0;;) {
      const uint64_t order = next_order(known);
      known = order;
      if (part >= static_cast<int>(order & kMostParts)) continue;
      call_(work_, part);
      unfinished_.fetch_sub(1, std::memory_order_release);
    }
  }

  uint64_t next_order(uint64_t known) {
    for (int turns = 0; turns < kTurns; turns++) {
      if (const uint64_t order = order_; order != known) return order;
      pause_briefly();
    }
    std::unique_lock<std::mutex> lock(sleep_);
    asleep_++;                                 // before the order is read again, so that none is missed
    wake_.wait(lock, [&] { return order_ != known; });
    asleep_--;
    return order_;
  }

  const pid_t process_ = getpid();
  std::mutex turn_, sleep_;
  std::condition_variable wake_;
  std::atomic<uint64_t> order_{0};             // its number and its parts in one, so that both are consistent
  std::atomic<int> unfinished_{0}, asleep_{0};
  const void* work_ = nullptr;
  void (*call_)(const void*, int) = nullptr;
  int members_ = 0;
};

// Parts into which `items` of `work` products are divided.
constexpr int64_t kThreadWork = 1 << 17;       // products from which another thread is quicker

inline int parts_of(int threads, int64_t items, int64_t work) {
  const int64_t worth = 1 + work / kThreadWork;
  return static_cast<int>(std::min<int64_t>({threads, items, worth, Team::kMostParts}));
}

}  // namespace
