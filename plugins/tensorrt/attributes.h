// The attributes of a node, read from TensorRT's plugin fields and written back to them.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>

namespace mega_deploy {

enum OptionalInput : int32_t { kBias = 1, kRowScale = 2 };

struct Attributes {
  bool l1 = true;
  bool causal = false;
  float mu = 0.70710678f;     // sqrt(1/2)
  float sigma = 0.28209479f;  // sqrt(1/(4 pi))
  // Which optional inputs follow q, k and v: a sum of OptionalInput, or kByNumber where their number tells.
  int32_t inputs = kByNumber;

  static constexpr int32_t kByNumber = -1;
};

// False, with the reason logged, where a field has a wrong type, length or value. What is not given keeps its default;
// unknown fields are ignored with a warning.
bool ReadFields(const nvinfer1::PluginFieldCollection* fields, Attributes* attributes) noexcept;

// The names and types of all fields, without data: what the ONNX parser looks for in a node.
const nvinfer1::PluginFieldCollection* FieldNames() noexcept;

// The attributes as fields, which point into this object.
class Fields {
 public:
  Fields() = default;
  Fields(const Fields&) = delete;
  Fields& operator=(const Fields&) = delete;
  const nvinfer1::PluginFieldCollection* Write(const Attributes& attributes) noexcept;

 private:
  Attributes attributes_;
  int32_t causal_ = 0;
  std::array<nvinfer1::PluginField, 5> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace mega_deploy
