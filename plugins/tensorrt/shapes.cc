#include "shapes.h"

#include <cinttypes>
#include <cstdio>

#include "log.h"

namespace mega_deploy {
namespace {

struct Text {
  char text[128];
};

Text Describe(const nvinfer1::Dims& dims) {
  Text result;
  int used = std::snprintf(result.text, sizeof result.text, "[");
  for (int32_t axis = 0; axis < dims.nbDims && axis < nvinfer1::Dims::MAX_DIMS && used < 100; ++axis)
    used += std::snprintf(result.text + used, sizeof result.text - used, "%s%" PRId64, axis ? ", " : "",
                          static_cast<int64_t>(dims.d[axis]));
  std::snprintf(result.text + used, sizeof result.text - used, "]");
  return result;
}

bool HasRank(const char* name, const nvinfer1::Dims& dims, int32_t rank) {
  if (dims.nbDims == rank) return true;
  MEGA_DEPLOY_ERROR("%s is %s; it must have %d axes", name, Describe(dims).text, rank);
  return false;
}

// Whether an axis has the size that other inputs gave; a size that is unknown becomes the axis's.
bool Agree(const char* name, const nvinfer1::Dims& dims, int32_t axis, const char* meaning, int64_t* size) {
  const int64_t found = dims.d[axis];
  if (found < 0 || found == *size) return true;
  if (*size < 0) {
    *size = found;
    return true;
  }
  MEGA_DEPLOY_ERROR("%s is %s; its axis %d must be the %s, %" PRId64, name, Describe(dims).text, axis, meaning, *size);
  return false;
}

// An optional input's first axis: 1 serves the whole batch.
bool AgreeOnBatch(const char* name, const nvinfer1::Dims& dims, int64_t* batch, int64_t* own) {
  *own = dims.d[0];
  return dims.d[0] == 1 || Agree(name, dims, 0, "batch or 1", batch);
}

}  // namespace

int32_t OptionalInputs(const Attributes& attributes, int32_t number) noexcept {
  int32_t optional = attributes.inputs;
  if (optional == Attributes::kByNumber) optional = number == 4 ? kBias : number == 5 ? kBias | kRowScale : 0;
  if (attributes.l1 && number > 3) {
    MEGA_DEPLOY_ERROR("%d inputs, but l1 takes q, k and v alone: bias and row_scale belong to the kernel erf", number);
    return -1;
  }
  if (NumberOfInputs(optional) != number) {
    MEGA_DEPLOY_ERROR("%d inputs, where the attribute inputs = %d asks for %d (q, k, v%s%s)", number, attributes.inputs,
                      NumberOfInputs(optional), optional & kBias ? ", bias" : "",
                      optional & kRowScale ? ", row_scale" : "");
    return -1;
  }
  return optional;
}

bool MatchShapes(const nvinfer1::Dims* const* inputs, int32_t optional, Sizes* sizes) noexcept {
  const nvinfer1::Dims &q = *inputs[0], &k = *inputs[1], &v = *inputs[2];
  if (!HasRank("q", q, 3) || !HasRank("k", k, 3) || !HasRank("v", v, 3)) return false;
  Sizes& s = *sizes;
  s = {q.d[0], q.d[1], -1, q.d[2], v.d[2], 0, 0};
  if (!Agree("k", k, 0, "batch of q", &s.batch) || !Agree("v", v, 0, "batch of q", &s.batch)) return false;
  if (!Agree("k", k, 2, "channels of q", &s.d)) return false;
  if (!Agree("k", k, 1, "keys", &s.n) || !Agree("v", v, 1, "rows of k", &s.n)) return false;
  int32_t next = 3;
  if (optional & kBias) {
    const nvinfer1::Dims& bias = *inputs[next++];
    if (!HasRank("bias", bias, 3) || !AgreeOnBatch("bias", bias, &s.batch, &s.bias_batches)) return false;
    if (!Agree("bias", bias, 1, "rows of q", &s.m) || !Agree("bias", bias, 2, "rows of k", &s.n)) return false;
  }
  if (optional & kRowScale) {
    const nvinfer1::Dims& scale = *inputs[next++];
    if (!HasRank("row_scale", scale, 2) || !AgreeOnBatch("row_scale", scale, &s.batch, &s.scale_batches)) return false;
    if (!Agree("row_scale", scale, 1, "rows of q", &s.m)) return false;
  }
  return true;
}

}  // namespace mega_deploy
