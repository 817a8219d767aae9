// What makes the layer from the fields of a node or of a serialised engine.
#pragma once

#include <NvInferRuntime.h>

#include "plugin.h"

namespace mega_deploy {

class LaplaceCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return FieldNames(); }
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
};

}  // namespace mega_deploy
