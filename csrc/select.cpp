#include "select.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "dispatch.h"
#include "hash.h"
#include "parallel.h"
#include "sample.h"

namespace gsdist {
namespace {

// The rank-th largest (1 = the largest), digit by digit from the top: of the 31 bits of a magnitude
// the upper 11, then 10, then 10.
uint32_t ranked_magnitude(const std::vector<uint32_t>& magnitudes, uint64_t rank) {
  uint32_t prefix = 0;
  for (const int shift : {20, 10, 0}) {
    std::array<uint64_t, 2048> counts = {};
    const uint32_t digits = shift == 20 ? 2048 : 1024;
    for (const uint32_t m : magnitudes) {
      counts[m >> shift & (digits - 1)] += shift == 20 || m >> (shift + 10) == prefix;
    }
    uint32_t digit = digits - 1;
    for (; rank > counts[digit]; --digit) rank -= counts[digit];
    prefix = prefix * digits + digit;
  }
  return prefix;
}

}  // namespace

Candidates::Candidates(uint64_t k) : k_(k), capacity_(2 * k + (1 << 16)) {}

void Candidates::add_block(uint64_t block, uint64_t lanes, const uint32_t* magnitudes) {
  for (; lanes != 0; lanes &= lanes - 1) {
    const int lane = __builtin_ctzll(lanes);
    if (magnitudes[lane] < floor_) continue;
    indices_.push_back(static_cast<int64_t>(block << kBlockShift) + lane);
    magnitudes_.push_back(magnitudes[lane]);
  }
  if (indices_.size() > capacity_) {
    keep_largest();
    floor_ = *std::min_element(magnitudes_.begin(), magnitudes_.end()) + 1;
  }
}

void Candidates::append(const Candidates& other) {
  indices_.insert(indices_.end(), other.indices_.begin(), other.indices_.end());
  magnitudes_.insert(magnitudes_.end(), other.magnitudes_.begin(), other.magnitudes_.end());
}

void Candidates::keep_largest() {
  if (indices_.size() <= k_) return;
  const uint32_t smallest = ranked_magnitude(magnitudes_, k_);
  uint64_t equal_left = k_;
  for (const uint32_t m : magnitudes_) equal_left -= m > smallest;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < indices_.size(); ++i) {
    const bool equal = magnitudes_[i] == smallest;
    if (magnitudes_[i] < smallest || (equal && equal_left == 0)) continue;
    equal_left -= equal;
    indices_[kept] = indices_[i];
    magnitudes_[kept++] = magnitudes_[i];
  }
  indices_.resize(kept);
  magnitudes_.resize(kept);
}

uint64_t Source::blocks() const { return (dimension_ + kBlock - 1) >> kBlockShift; }

uint64_t Source::valid_lanes(uint64_t block) const {
  const uint64_t left = dimension_ - (block << kBlockShift);
  return left >= kBlock ? ~0ULL : (1ULL << left) - 1;
}

namespace {

std::vector<uint32_t> sample_magnitudes(const Source& source) {
  const uint64_t blocks = source.blocks();
  const uint64_t taken = sample_blocks(blocks);
  std::vector<uint32_t> sample;
  sample.reserve(taken * kBlock);
  uint32_t magnitudes[kBlock];
  for (uint64_t j = 0; j < taken; ++j) {
    const uint64_t block = sample_block(j, taken, blocks);
    source.magnitudes(block, magnitudes);
    for (uint64_t lanes = source.valid_lanes(block); lanes != 0; lanes &= lanes - 1) {
      sample.push_back(magnitudes[__builtin_ctzll(lanes)]);
    }
  }
  return sample;
}

Candidates scan_all(const Source& source, uint64_t k, int threads) {
  std::vector<Candidates> parts(
      static_cast<std::size_t>(std::max(part_count(source.blocks(), threads), 1)), Candidates(k));
  parallel_ranges(source.blocks(), threads, [&](int part, uint64_t begin, uint64_t end) {
    source.scan(begin, end, parts[static_cast<std::size_t>(part)]);
  });
  for (std::size_t part = 1; part < parts.size(); ++part) parts[0].append(parts[part]);
  return std::move(parts[0]);
}

// Merges the chosen indices with the lowest indices that are not among them, up to k in all.
void fill_with_lowest(const std::vector<int64_t>& chosen, uint64_t k, int64_t* out) {
  uint64_t missing = k - chosen.size();
  int64_t next = 0;
  for (const int64_t index : chosen) {
    for (; missing > 0 && next < index; --missing) *out++ = next++;
    *out++ = index;
    next = index + 1;
  }
  for (; missing > 0; --missing) *out++ = next++;
}

}  // namespace

void select_largest(Source& source, uint64_t k, int64_t* out_indices, int threads) {
  if (k == 0) return;
  if (k == source.dimension()) return fill_with_lowest({}, k, out_indices);
  const std::vector<uint32_t> sample = sample_magnitudes(source);
  for (uint64_t rank = sample_rank(k, sample.size(), source.dimension());; rank *= 4) {
    const bool all = rank > sample.size();
    // Below threshold 1 there are only zeros, which need no search: the lowest indices win.
    const uint32_t threshold = all ? 1 : std::max(ranked_magnitude(sample, rank), 1U);
    source.set_threshold(threshold);
    Candidates candidates = scan_all(source, k, threads);
    if (candidates.indices().size() < k && threshold > 1) continue;
    candidates.keep_largest();
    return fill_with_lowest(candidates.indices(), k, out_indices);
  }
}

namespace {

class ValueSource final : public Source {
 public:
  ValueSource(const float* values, uint64_t count) : Source(count), values_(values) {}

  void magnitudes(uint64_t block, uint32_t* out) const override {
    const uint64_t start = block << kBlockShift;
    const uint64_t count = std::min<uint64_t>(kBlock, dimension() - start);
    std::memcpy(out, values_ + start, count * sizeof(float));
    for (uint64_t l = 0; l < count; ++l) out[l] &= 0x7FFFFFFF;
  }

  void set_threshold(uint32_t threshold) override { threshold_ = threshold; }

  void scan(uint64_t begin, uint64_t end, Candidates& candidates) const override {
    uint64_t lanes[kChunk];
    for (uint64_t first = begin; first < end; first += kChunk) {
      const uint64_t count = std::min<uint64_t>(kChunk, end - first);
      const uint64_t whole = std::min(count, (dimension() >> kBlockShift) - first);
      kernels().find_values(values_ + (first << kBlockShift), whole, threshold_, lanes);
      for (uint64_t j = 0; j < whole; ++j) add_found(first + j, lanes[j], candidates);
      if (whole < count) add_last_block(candidates);
    }
  }

 private:
  void add_found(uint64_t block, uint64_t found, Candidates& candidates) const {
    if (found == 0) return;
    uint32_t bits[kBlock];
    magnitudes(block, bits);
    candidates.add_block(block, found, bits);
  }

  void add_last_block(Candidates& candidates) const {
    const uint64_t block = dimension() >> kBlockShift;
    uint32_t bits[kBlock] = {};
    magnitudes(block, bits);
    uint64_t found = 0;
    for (int l = 0; l < kBlock; ++l) found |= static_cast<uint64_t>(bits[l] >= threshold_) << l;
    add_found(block, found, candidates);
  }

  const float* values_;
  uint32_t threshold_ = 1;
};

}  // namespace

void top_k(const float* values, uint64_t count, uint64_t k, int64_t* out_indices, int threads) {
  ValueSource source(values, count);
  select_largest(source, k, out_indices, threads);
}

bool compensate(float* out, const float* residual, const float* momentum, const float* gradient,
                float scale, float momentum_factor, bool nesterov, uint64_t count, int threads) {
  std::vector<char> finite(static_cast<std::size_t>(std::max(threads, 1)), 1);
  parallel_ranges(count, threads, [&](int part, uint64_t begin, uint64_t end) {
    finite[static_cast<std::size_t>(part)] = kernels().compensate(
        out + begin, residual ? residual + begin : nullptr, momentum ? momentum + begin : nullptr,
        gradient + begin, scale, momentum_factor, nesterov, end - begin);
  });
  return std::find(finite.begin(), finite.end(), 0) == finite.end();
}

}  // namespace gsdist
