// Exact selection of the k largest magnitudes, and the update that selection is fed with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gsdist {

// Coordinates met in ascending order whose magnitude may be among the k largest. Magnitudes are
// the bits of |x| (see kernels.h). Never holds more than O(k): when it is full, all but the k
// largest go, ties to the lowest index.
class Candidates {
 public:
  explicit Candidates(uint64_t k);

  // Adds the lanes of a block whose bit is set; magnitudes[l] belongs to lane l.
  void add_block(uint64_t block, uint64_t lanes, const uint32_t* magnitudes);

  // Adds all of `other`, whose indices must lie above those already here.
  void append(const Candidates& other);

  // Drops all but the k largest.
  void keep_largest();

  const std::vector<int64_t>& indices() const { return indices_; }

 private:
  uint64_t k_;
  std::size_t capacity_;
  uint32_t floor_ = 0;  // k candidates are known to be at least this large, so equals come too late
  std::vector<int64_t> indices_;
  std::vector<uint32_t> magnitudes_;
};

// A vector of magnitudes that can be looked at in part.
class Source {
 public:
  explicit Source(uint64_t dimension) : dimension_(dimension) {}
  virtual ~Source() = default;

  uint64_t dimension() const { return dimension_; }
  uint64_t blocks() const;

  // The lanes of a block that lie below the dimension.
  uint64_t valid_lanes(uint64_t block) const;

  // Magnitudes of one block; lanes that are not valid are undefined.
  virtual void magnitudes(uint64_t block, uint32_t* out) const = 0;

  // Prepares scan() to find the magnitudes >= threshold (at least 1).
  virtual void set_threshold(uint32_t threshold) = 0;

  // Adds what it finds in the blocks begin..end-1 to the candidates. Called from several threads.
  virtual void scan(uint64_t begin, uint64_t end, Candidates& candidates) const = 0;

 private:
  uint64_t dimension_;
};

// Writes the indices of the k largest magnitudes, ties to the lowest index, in ascending order.
// Reads the source once as a rule: a sample of it gives the threshold.
void select_largest(Source& source, uint64_t k, int64_t* out_indices, int threads);

// The k largest |values|, ties to the lowest index, ascending.
void top_k(const float* values, uint64_t count, uint64_t k, int64_t* out_indices, int threads);

// Error feedback with momentum correction: with g = scale * gradient,
//   no momentum (null):  out = residual + g
//   else u = momentum_factor * momentum + g,
//                        out = residual + (nesterov ? g + momentum_factor * u : u)
// A null residual stands for zeros. The inputs stay as they are. Returns whether out is finite.
bool compensate(float* out, const float* residual, const float* momentum, const float* gradient,
                float scale, float momentum_factor, bool nesterov, uint64_t count, int threads);

}  // namespace gsdist
