// Splitting work over threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace gsdist {

// How many parts parallel_ranges will make: never more than there are items.
inline int part_count(uint64_t items, int threads) {
  return static_cast<int>(std::min<uint64_t>(items, static_cast<uint64_t>(std::max(threads, 1))));
}

// Calls work(part, begin, end) for part_count() contiguous ranges of 0..items-1, each on its own
// thread, the first on the caller's. work must not throw.
template <class Work>
void parallel_ranges(uint64_t items, int threads, Work work) {
  const int parts = part_count(items, threads);
  if (parts == 0) return;
  const uint64_t size = items / static_cast<uint64_t>(parts);
  const uint64_t larger = items % static_cast<uint64_t>(parts);  // the first ones get one more
  const auto begin = [=](int part) {
    const uint64_t p = static_cast<uint64_t>(part);
    return p * size + std::min(p, larger);
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<std::size_t>(parts) - 1);
  for (int part = 1; part < parts; ++part) {
    others.emplace_back([=] { work(part, begin(part), begin(part + 1)); });
  }
  work(0, begin(0), begin(1));
  for (std::thread& other : others) other.join();
}

}  // namespace gsdist
