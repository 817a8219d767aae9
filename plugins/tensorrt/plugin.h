// LaplaceAttention as a layer of TensorRT.
#pragma once

#include <NvInferRuntime.h>

#include "attributes.h"
#include "kernels.h"
#include "shapes.h"

namespace mega_deploy {

inline constexpr char kName[] = "LaplaceAttention";
inline constexpr char kVersion[] = "1";
inline constexpr char kNamespace[] = "mega.deploy";

class LaplacePlugin final : public nvinfer1::IPluginV3,
                            public nvinfer1::IPluginV3OneCore,
                            public nvinfer1::IPluginV3OneBuild,
                            public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit LaplacePlugin(const Attributes& attributes) noexcept;
  LaplacePlugin(const LaplacePlugin& other) noexcept;

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // Core
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  // Build
  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t number_of_outputs, const nvinfer1::DataType* inputs,
                             int32_t number_of_inputs) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t number_of_inputs,
                          const nvinfer1::DimsExprs* shape_inputs, int32_t number_of_shape_inputs,
                          nvinfer1::DimsExprs* outputs, int32_t number_of_outputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t number_of_inputs, int32_t number_of_outputs) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t number_of_inputs,
                          const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t number_of_outputs) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t number_of_inputs,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t number_of_outputs) const noexcept override;
  int32_t getNbTactics() noexcept override;
  int32_t getValidTactics(int32_t* tactics, int32_t number_of_tactics) noexcept override;
  const char* getTimingCacheID() noexcept override { return timing_cache_id_; }

  // Runtime
  int32_t setTactic(int32_t tactic) noexcept override;
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t number_of_inputs,
                        const nvinfer1::PluginTensorDesc* outputs, int32_t number_of_outputs) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descriptions,
                  const nvinfer1::PluginTensorDesc* output_descriptions, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  bool IsOurs(int32_t number_of_inputs, int32_t number_of_outputs, int32_t* optional) const noexcept;
  Tile TileFor(int64_t rows) const noexcept;

  Attributes attributes_;
  int32_t optional_ = -1;  // inputs that follow q, k and v, once their number is known
  int32_t tactic_ = 0;     // 0 until TensorRT has chosen one
  char timing_cache_id_[96];
  Fields fields_;
};

}  // namespace mega_deploy
