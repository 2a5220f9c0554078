#include "dispatch.h"

#include <atomic>
#include <stdexcept>

namespace gsdist {
namespace {

std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> found = {&kernels_portable};
#if defined(GSDIST_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) found.push_back(&kernels_avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&kernels_avx512);
  }
#endif
  return found;
}

const std::vector<const Kernels*>& usable() {
  static const std::vector<const Kernels*> found = usable_kernels();
  return found;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> chosen(usable().back());
  return chosen;
}

}  // namespace

std::vector<std::string> simd_levels() {
  std::vector<std::string> names;
  for (const Kernels* level : usable()) names.push_back(level->name);
  return names;
}

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

void use_simd_level(const std::string& name) {
  std::string known;
  for (const Kernels* level : usable()) {
    if (name == level->name) {
      current().store(level, std::memory_order_relaxed);
      return;
    }
    known += known.empty() ? level->name : std::string(", ") + level->name;
  }
  throw std::invalid_argument("SIMD level '" + name + "' is not usable here; choose one of: " +
                              known);
}

}  // namespace gsdist
