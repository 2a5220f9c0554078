// A libFuzzer harness for the C++ entry points: arbitrary shapes and values, within what the Python side checks.
//
// Without libFuzzer (GSDIST_STANDALONE) a main of its own makes random inputs: native <inputs> <seed>.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../csrc/select.h"
#include "../csrc/sketch.h"

namespace {

class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  template <class T>
  T take() {
    T value{};
    size_t count = sizeof(T) < size_ ? sizeof(T) : size_;
    std::memcpy(&value, data_, count);
    data_ += count;
    size_ -= count;
    return value;
  }

  uint64_t below(uint64_t limit) { return take<uint64_t>() % limit; }

 private:
  const uint8_t* data_;
  size_t size_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Reader in(data, size);
  const int rows = 1 + 2 * static_cast<int>(in.below(4));
  const uint64_t columns = 64 * (1 + in.below(5));
  const uint64_t seed = in.take<uint64_t>();
  const uint64_t dimension = 1 + in.below(3000);
  const uint64_t offset = in.below(dimension);
  const uint64_t count = in.below(dimension - offset + 1);
  const int threads = 1 + static_cast<int>(in.below(3));
  // exact sizes, so that a read or write beyond them is seen
  std::vector<float> table(rows * columns), values(count);
  for (float& value : values) value = in.take<float>();
  gsdist::encode_dense({table.data(), rows, columns, seed}, values.data(), offset, count, threads);
  std::vector<int64_t> indices(count);
  for (int64_t& index : indices) index = static_cast<int64_t>(in.below(dimension));
  gsdist::encode_sparse({table.data(), rows, columns, seed}, indices.data(), values.data(), count,
                        threads);
  std::vector<float> estimates(count);
  gsdist::estimate({table.data(), rows, columns, seed}, indices.data(), estimates.data(), count,
                   threads);
  const uint64_t k = 1 + in.below(dimension);
  std::vector<int64_t> heavy(k);
  gsdist::heavy_hitters({table.data(), rows, columns, seed}, dimension, k, heavy.data(), threads);
  for (int64_t index : heavy)
    if (index < 0 || static_cast<uint64_t>(index) >= dimension) std::abort();
  if (count > 0) {
    const uint64_t chosen = 1 + in.below(count);
    std::vector<int64_t> top(chosen);
    gsdist::top_k(values.data(), count, chosen, top.data(), threads);
    for (int64_t index : top)
      if (index < 0 || static_cast<uint64_t>(index) >= count) std::abort();
    std::vector<float> out(count), momentum(count);
    gsdist::compensate(out.data(), estimates.data(), momentum.data(), values.data(),
                       in.take<float>(), in.take<float>(), in.below(2), count, threads);
  }
  return 0;
}

#ifdef GSDIST_STANDALONE
#include <cstdio>
#include <random>

int main(int argc, char** argv) {
  const long inputs = argc > 1 ? std::atol(argv[1]) : 1000;
  std::mt19937_64 random(argc > 2 ? std::atol(argv[2]) : 1);
  for (long i = 0; i < inputs; ++i) {
    std::vector<uint8_t> data(64 + random() % 4000);
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(data.data(), data.size());
  }
  std::printf("%ld inputs, no finding\n", inputs);
}
#endif
