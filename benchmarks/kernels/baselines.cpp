// What the kernels are compared with, compiled for the machine the benchmark runs on.
//
// The reads say how fast the vector can pass through the processor at all. The per-coordinate
// sketch is the textbook loop with the kernels' hash family, only hashed for every coordinate
// instead of every block of 64. The vectorised loop is the same, arranged so that a compiler for a
// machine with 64-bit vector multiplication (AVX-512) hashes eight coordinates at a time.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "hash.h"

namespace {

using gsdist::block_position;
using gsdist::block_signs;
using gsdist::bucket_block;
using gsdist::row_key;

typedef float Vector __attribute__((vector_size(32)));

void in_threads(uint64_t items, int threads, const std::function<void(uint64_t, uint64_t)>& work) {
  std::vector<std::thread> others;
  const uint64_t parts = static_cast<uint64_t>(threads);
  for (uint64_t t = 1; t < parts; ++t) {
    others.emplace_back(work, items * t / parts, items * (t + 1) / parts);
  }
  work(0, items / parts);
  for (std::thread& other : others) other.join();
}

// Eight independent sums keep the loads going while the additions wait for one another.
float unrolled_sum(const float* values, uint64_t count) {
  constexpr uint64_t kUnroll = 8;
  constexpr uint64_t kLanes = sizeof(Vector) / sizeof(float);
  Vector sums[kUnroll] = {};
  for (uint64_t i = 0; i + kUnroll * kLanes <= count; i += kUnroll * kLanes) {
    for (uint64_t u = 0; u < kUnroll; ++u) {
      Vector v;
      std::memcpy(&v, values + i + u * kLanes, sizeof v);
      sums[u] += v;
    }
  }
  float sum = 0;
  for (const Vector& s : sums) {
    for (uint64_t l = 0; l < kLanes; ++l) sum += s[l];
  }
  return sum;
}

// Copies into a small buffer that stays in L1: the vector is read, nothing goes back to memory.
float copied(const float* values, uint64_t count) {
  constexpr uint64_t kBuffer = 2048;
  float buffer[kBuffer];
  float last = 0;
  for (uint64_t i = 0; i + kBuffer <= count; i += kBuffer) {
    std::memcpy(buffer, values + i, sizeof buffer);
    asm volatile("" : : "r"(buffer) : "memory");  // the copy must happen
    last = buffer[kBuffer - 1];
  }
  return last;
}

struct Place {
  uint64_t cell;
  uint32_t sign_bit;
};

Place place(uint64_t key, uint64_t index, uint64_t columns) {
  const uint64_t word = block_signs(key, index);
  return {bucket_block(block_position(word), columns), static_cast<uint32_t>(word) << 31};
}

float with_sign(float value, uint32_t sign_bit) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits ^= sign_bit;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

// Sorts by exchanges without branches: a branching sort would wait for mispredictions.
float median(float* values, int count) {
  for (int end = count; end > count / 2; --end) {
    for (int i = 1; i < end; ++i) {
      const float smaller = std::min(values[i - 1], values[i]);
      values[i] = std::max(values[i - 1], values[i]);
      values[i - 1] = smaller;
    }
  }
  return values[count / 2];
}

}  // namespace

extern "C" {

float read_unrolled(const float* values, uint64_t count, int threads) {
  std::vector<float> sums(static_cast<size_t>(threads));
  in_threads(count, threads, [&](uint64_t begin, uint64_t end) {
    sums[begin * static_cast<uint64_t>(threads) / count] =
        unrolled_sum(values + begin, end - begin);
  });
  return sums[0];
}

float read_memcpy(const float* values, uint64_t count, int threads) {
  std::vector<float> sums(static_cast<size_t>(threads));
  in_threads(count, threads, [&](uint64_t begin, uint64_t end) {
    sums[begin * static_cast<uint64_t>(threads) / count] = copied(values + begin, end - begin);
  });
  return sums[0];
}

void per_coordinate_encode(float* table, int rows, uint64_t columns, uint64_t seed,
                           const float* values, uint64_t count, int threads) {
  in_threads(static_cast<uint64_t>(rows), threads, [=](uint64_t begin, uint64_t end) {
    for (uint64_t q = begin; q < end; ++q) {
      const uint64_t key = row_key(seed, static_cast<int>(q));
      float* const cells = table + q * columns;
      for (uint64_t i = 0; i < count; ++i) {
        const Place p = place(key, i, columns);
        cells[p.cell] += with_sign(values[i], p.sign_bit);
      }
    }
  });
}

void vectorised_encode(float* table, int rows, uint64_t columns, uint64_t seed,
                       const float* values, uint64_t count, int threads) {
  in_threads(static_cast<uint64_t>(rows), threads, [=](uint64_t begin, uint64_t end) {
    for (uint64_t q = begin; q < end; ++q) {
      const uint64_t key = row_key(seed, static_cast<int>(q));
      float* const cells = table + q * columns;
      for (uint64_t start = 0; start < count; start += 64) {
        const uint64_t n = std::min<uint64_t>(64, count - start);
        uint64_t buckets[64];
        float signed_values[64];
        for (uint64_t j = 0; j < n; ++j) {
          const Place p = place(key, start + j, columns);
          buckets[j] = p.cell;
          signed_values[j] = with_sign(values[start + j], p.sign_bit);
        }
        for (uint64_t j = 0; j < n; ++j) cells[buckets[j]] += signed_values[j];
      }
    }
  });
}

void per_coordinate_estimate(const float* table, int rows, uint64_t columns, uint64_t seed,
                             const int64_t* indices, float* out, uint64_t count, int threads) {
  uint64_t keys[gsdist::kMaxRows];
  for (int q = 0; q < rows; ++q) keys[q] = row_key(seed, q);
  in_threads(count, threads, [=, &keys](uint64_t begin, uint64_t end) {
    for (uint64_t i = begin; i < end; ++i) {
      float estimates[gsdist::kMaxRows];
      for (int q = 0; q < rows; ++q) {
        const uint64_t index = indices ? static_cast<uint64_t>(indices[i]) : i;
        const Place p = place(keys[q], index, columns);
        estimates[q] = with_sign(table[static_cast<uint64_t>(q) * columns + p.cell], p.sign_bit);
      }
      out[i] = median(estimates, rows);
    }
  });
}

// Estimates every coordinate, finds the k-th largest magnitude and collects what reaches it.
void per_coordinate_heavy_hitters(const float* table, int rows, uint64_t columns, uint64_t seed,
                                  uint64_t dimension, uint64_t k, int64_t* out, int threads) {
  std::vector<float> magnitudes(dimension);
  per_coordinate_estimate(table, rows, columns, seed, nullptr, magnitudes.data(), dimension,
                          threads);
  for (float& m : magnitudes) m = std::fabs(m);
  std::vector<float> order = magnitudes;
  const auto kth = order.begin() + static_cast<int64_t>(k - 1);
  std::nth_element(order.begin(), kth, order.end(), std::greater<float>());
  const float threshold = *kth;
  uint64_t equal_left = k - static_cast<uint64_t>(std::count_if(
                                magnitudes.begin(), magnitudes.end(),
                                [=](float m) { return m > threshold; }));
  for (uint64_t i = 0; i < dimension; ++i) {
    const bool equal = magnitudes[i] == threshold && equal_left > 0;
    equal_left -= equal;
    if (magnitudes[i] > threshold || equal) *out++ = static_cast<int64_t>(i);
  }
}
}
