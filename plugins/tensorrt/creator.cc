#include "creator.h"

#include <new>

#include "log.h"

namespace mega_deploy {

nvinfer1::IPluginV3* LaplaceCreator::createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                                  nvinfer1::TensorRTPhase) noexcept {
  Attributes attributes;
  if (!ReadFields(fields, &attributes)) return nullptr;
  LaplacePlugin* const plugin = new (std::nothrow) LaplacePlugin(attributes);
  if (plugin == nullptr) MEGA_DEPLOY_ERROR("out of memory");
  return plugin;
}

}  // namespace mega_deploy
