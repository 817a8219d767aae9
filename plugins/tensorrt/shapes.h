// Which tensors a layer has, and what their shapes say.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>

#include "attributes.h"

namespace mega_deploy {

// q [batch, m, d], k [batch, n, d], v [batch, n, dv], bias [bias_batches, m, n], row_scale [scale_batches, m].
// -1 is a size that is not known yet; bias_batches and scale_batches are 0 where there is no such input.
struct Sizes {
  int64_t batch, m, n, d, dv, bias_batches, scale_batches;
};

// The optional inputs among `number` of inputs, a sum of OptionalInput; -1, with the reason logged, where the number
// does not fit the attributes.
int32_t OptionalInputs(const Attributes& attributes, int32_t number) noexcept;

inline int32_t NumberOfInputs(int32_t optional) { return 3 + (optional & kBias ? 1 : 0) + (optional & kRowScale ? 1 : 0); }

// What the shapes of the inputs agree on; false, with the reason logged, where they contradict each other.
bool MatchShapes(const nvinfer1::Dims* const* inputs, int32_t optional, Sizes* sizes) noexcept;

}  // namespace mega_deploy
