// Which SIMD levels this build and this CPU have, and which one is in use.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace gsdist {

// Names of the levels that are built and usable on this CPU, best last.
std::vector<std::string> simd_levels();

// The kernels in use: at first the best level.
const Kernels& kernels();

// Switches the whole process to one of simd_levels(); throws std::invalid_argument otherwise.
void use_simd_level(const std::string& name);

}  // namespace gsdist
