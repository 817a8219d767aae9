#include "attributes.h"

#include <cmath>
#include <cstring>
#include <string_view>

#include "log.h"

namespace mega_deploy {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

// What the ONNX parser may hand on beside the attributes of the op.
bool IsParsersOwn(std::string_view name) {
  return name == "plugin_version" || name == "plugin_namespace" || name == "plugin_name" ||
         name == "tensorrt_plugin_shape_input_indices" || name == "aliased_output_indices";
}

bool ReadKernel(const PluginField& field, bool* l1) {
  if (field.type != PluginFieldType::kCHAR || field.data == nullptr || field.length < 1) {
    MEGA_DEPLOY_ERROR("the attribute kernel must be characters, \"l1\" or \"erf\"");
    return false;
  }
  std::string_view value(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
  if (value.back() == '\0') value.remove_suffix(1);  // both ways of writing a string occur
  if (value != "l1" && value != "erf") {
    MEGA_DEPLOY_ERROR("the attribute kernel is \"%.*s\"; it must be \"l1\" or \"erf\"",
                      static_cast<int>(value.size() < 64 ? value.size() : 64), value.data());
    return false;
  }
  *l1 = value == "l1";
  return true;
}

template <typename T>
bool ReadScalar(const PluginField& field, PluginFieldType type, const char* kind, T* value) {
  if (field.type != type || field.data == nullptr || field.length != 1) {
    MEGA_DEPLOY_ERROR("the attribute %s must be one %s", field.name, kind);
    return false;
  }
  std::memcpy(value, field.data, sizeof *value);
  return true;
}

bool ReadInteger(const PluginField& field, int32_t lowest, int32_t highest, int32_t* value) {
  if (!ReadScalar(field, PluginFieldType::kINT32, "int32", value)) return false;
  if (*value >= lowest && *value <= highest) return true;
  MEGA_DEPLOY_ERROR("the attribute %s is %d; it must lie in %d..%d", field.name, *value, lowest, highest);
  return false;
}

bool ReadFloat(const PluginField& field, float* value) {
  if (!ReadScalar(field, PluginFieldType::kFLOAT32, "float32", value)) return false;
  if (std::isfinite(*value)) return true;
  MEGA_DEPLOY_ERROR("the attribute %s must be finite", field.name);
  return false;
}

bool ReadField(const PluginField& field, Attributes* attributes) {
  const std::string_view name = field.name == nullptr ? "" : field.name;
  if (name == "kernel") return ReadKernel(field, &attributes->l1);
  if (name == "causal") {
    int32_t value = 0;
    if (!ReadInteger(field, 0, 1, &value)) return false;
    attributes->causal = value != 0;
    return true;
  }
  if (name == "mu") return ReadFloat(field, &attributes->mu);
  if (name == "sigma") {
    if (!ReadFloat(field, &attributes->sigma)) return false;
    if (attributes->sigma > 0) return true;
    MEGA_DEPLOY_ERROR("the attribute sigma is %g; it must be above 0", static_cast<double>(attributes->sigma));
    return false;
  }
  if (name == "inputs") return ReadInteger(field, Attributes::kByNumber, kBias | kRowScale, &attributes->inputs);
  if (!IsParsersOwn(name))
    Log(Severity::kWARNING, "the attribute \"%.64s\" is unknown and ignored", field.name == nullptr ? "" : field.name);
  return true;
}

}  // namespace

bool ReadFields(const nvinfer1::PluginFieldCollection* fields, Attributes* attributes) noexcept {
  if (fields == nullptr || (fields->nbFields > 0 && fields->fields == nullptr)) {
    MEGA_DEPLOY_ERROR("there is no collection of fields to create the layer from");
    return false;
  }
  for (int32_t i = 0; i < fields->nbFields; ++i)
    if (!ReadField(fields->fields[i], attributes)) return false;
  if (attributes->l1 && attributes->inputs > 0) {
    MEGA_DEPLOY_ERROR("the attribute inputs is %d, but bias and row_scale belong to the kernel erf, not to l1",
                      attributes->inputs);
    return false;
  }
  return true;
}

const nvinfer1::PluginFieldCollection* FieldNames() noexcept {
  static const PluginField fields[] = {
      {"kernel", nullptr, PluginFieldType::kCHAR, 1},   {"causal", nullptr, PluginFieldType::kINT32, 1},
      {"mu", nullptr, PluginFieldType::kFLOAT32, 1},    {"sigma", nullptr, PluginFieldType::kFLOAT32, 1},
      {"inputs", nullptr, PluginFieldType::kINT32, 1},
  };
  static const nvinfer1::PluginFieldCollection collection{static_cast<int32_t>(std::size(fields)), fields};
  return &collection;
}

const nvinfer1::PluginFieldCollection* Fields::Write(const Attributes& attributes) noexcept {
  attributes_ = attributes;
  causal_ = attributes.causal ? 1 : 0;
  const char* const kernel = attributes.l1 ? "l1" : "erf";
  fields_ = {PluginField("kernel", kernel, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(kernel) + 1)),
             PluginField("causal", &causal_, PluginFieldType::kINT32, 1),
             PluginField("mu", &attributes_.mu, PluginFieldType::kFLOAT32, 1),
             PluginField("sigma", &attributes_.sigma, PluginFieldType::kFLOAT32, 1),
             PluginField("inputs", &attributes_.inputs, PluginFieldType::kINT32, 1)};
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  return &collection_;
}

}  // namespace mega_deploy
