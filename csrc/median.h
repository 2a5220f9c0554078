// The median of an odd number of values, by comparisons that do not depend on the values.
//
// Floats are compared as integers throughout: the bits of a positive float order like the number,
// so the order is total (NaN above infinity, -0 below +0), the same on every processor and
// independent of the flush-to-zero mode of the calling thread.
#pragma once

#include "portable.h"

namespace gsdist {

// Float bits to integers of the same order, and back (its own inverse). T: an integer of 32 bits or
// a vector of them, as everywhere in this file.
template <class T>
GSDIST_INLINE T ordered(T bits) {
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

template <class T>
GSDIST_INLINE void order_pair(T& a, T& b) {
  const T low = a < b ? a : b;
  b = a < b ? b : a;
  a = low;
}

// Median of R values by forgetful selection: of Window values the smallest and the largest cannot
// be the median; both are dropped and the next value comes in.
template <int R, int Window, class T>
GSDIST_INLINE T forget(T* v) {
  for (int i = 1; i < Window; ++i) order_pair(v[0], v[i]);
  for (int i = 1; i < Window - 1; ++i) order_pair(v[i], v[Window - 1]);
  if constexpr (Window == 3) {
    return v[1];
  } else {
    // Windows shrink by one from R / 2 + 2, so this is the next value not yet taken in.
    v[0] = v[R / 2 + 2 + (R / 2 + 2 - Window)];
    return forget<R, Window - 1>(v);
  }
}

template <int R, class T>
GSDIST_INLINE T median(T* v) {
  if constexpr (R == 1) {
    return v[0];
  } else {
    return forget<R, R / 2 + 2>(v);
  }
}

template <int R>
struct Rows {
  static constexpr int value = R;
};

// Calls f with the number of rows as a compile-time constant.
template <class F>
GSDIST_INLINE void with_rows(int rows, F f) {
  switch (rows) {
    case 1: f(Rows<1>()); break;
    case 3: f(Rows<3>()); break;
    case 5: f(Rows<5>()); break;
    case 7: f(Rows<7>()); break;
    case 9: f(Rows<9>()); break;
    case 11: f(Rows<11>()); break;
    case 13: f(Rows<13>()); break;
    case 15: f(Rows<15>()); break;
  }
}

}  // namespace gsdist
