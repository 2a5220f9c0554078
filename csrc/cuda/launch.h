// Starting kernels by name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gsdist {

// Starts `thread_blocks` blocks of a kernel in a stream of the device. Every argument is a word; a
// float is its low half. Throws std::runtime_error with the reason where that fails.
void launch(const std::string& kernel, uint64_t thread_blocks, int device, uintptr_t stream,
            const std::vector<uint64_t>& words);

}  // namespace gsdist
