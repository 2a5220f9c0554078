// The update that error feedback adds to the residual, see compensate() in select.h.
#pragma once

#include "portable.h"

namespace gsdist {

GSDIST_INLINE float momentum_update(float scaled_gradient, float momentum, float momentum_factor,
                                    bool nesterov) {
  const float velocity = momentum_factor * momentum + scaled_gradient;
  return nesterov ? scaled_gradient + momentum_factor * velocity : velocity;
}

GSDIST_INLINE bool is_finite(float value) { return (to_bits(value) & 0x7F800000) != 0x7F800000; }

}  // namespace gsdist
