#include "launch.h"

#include <cuda_runtime_api.h>

#include <stdexcept>

#include "kernels.cuh"

namespace gsdist {
namespace {

struct Kernel {
  const char* name;
  const void* function;
  std::size_t parameters;
};

template <class... T>
constexpr std::size_t count_parameters(void (*)(T...)) {
  return sizeof...(T);
}

#define GSDIST_ENTRY(name) \
  {#name, reinterpret_cast<const void*>(&gsdist_##name), count_parameters(&gsdist_##name)},
const Kernel kKernels[] = {GSDIST_FOR_KERNELS(GSDIST_ENTRY)};
#undef GSDIST_ENTRY

const Kernel& find(const std::string& name) {
  for (const Kernel& kernel : kKernels) {
    if (name == kernel.name) return kernel;
  }
  throw std::runtime_error("there is no kernel of this name");
}

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

}  // namespace

void launch(const std::string& name, uint64_t thread_blocks, int device, uintptr_t stream,
            const std::vector<uint64_t>& words) {
  const Kernel& kernel = find(name);
  if (words.size() != kernel.parameters) throw std::runtime_error("wrong number of arguments");
  std::vector<void*> arguments;
  for (const uint64_t& word : words) arguments.push_back(const_cast<uint64_t*>(&word));
  check(cudaSetDevice(device));
  check(cudaLaunchKernel(kernel.function, dim3(static_cast<unsigned>(thread_blocks)),
                         dim3(kThreads), arguments.data(), 0,
                         reinterpret_cast<cudaStream_t>(stream)));
}

}  // namespace gsdist
