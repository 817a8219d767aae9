// What the library exports, and how it registers itself with a TensorRT that only opens it.
#include <NvInferRuntime.h>
#include <dlfcn.h>
#include <execinfo.h>

#include "creator.h"
#include "log.h"

#define MEGA_DEPLOY_TEXT(value) #value
#define MEGA_DEPLOY_SONAME(major) "libnvinfer.so." MEGA_DEPLOY_TEXT(major)

namespace {

// Another major version may lay out the registry in another way, and is not spoken to.
constexpr char kTensorRt[] = MEGA_DEPLOY_SONAME(NV_TENSORRT_MAJOR);

nvinfer1::IPluginCreatorInterface* Creator() {
  static mega_deploy::LaplaceCreator creator;
  return &creator;
}

using GetRegistry = nvinfer1::IPluginRegistry*() noexcept;

// TensorRT's function, if TensorRT is loaded; it is neither loaded for this nor kept from being closed.
GetRegistry* FindTensorRt() {
  void* const library = dlopen(kTensorRt, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  auto* const function = reinterpret_cast<GetRegistry*>(dlsym(library, "getPluginRegistry"));
  dlclose(library);
  return function;
}

bool Register(GetRegistry* tensorrt) {
  nvinfer1::IPluginRegistry* const registry = tensorrt();
  return registry != nullptr && registry->registerCreator(*Creator(), mega_deploy::kNamespace);
}

// Whether a function of TensorRT is among the callers: its registry opens this library and will ask getCreators.
bool TensorRtIsLoadingThis(GetRegistry* tensorrt) {
  Dl_info wanted, info;
  if (dladdr(reinterpret_cast<void*>(tensorrt), &wanted) == 0) return false;
  void* callers[64];
  const int depth = backtrace(callers, 64);
  for (int i = 0; i < depth; ++i)
    if (dladdr(callers[i], &info) != 0 && info.dli_fbase == wanted.dli_fbase) return true;
  return false;
}

// Programs that only open a plugin library expect it to register itself, as NVIDIA's REGISTER_TENSORRT_PLUGIN does:
// trtexec --staticPlugins, Polygraphy, ONNX Runtime and Triton Inference Server among them. TensorRT's own
// loadLibrary() on the other hand refuses plugins that are registered already.
__attribute__((constructor)) void RegisterWhereLoaded() {
  GetRegistry* const tensorrt = FindTensorRt();
  if (tensorrt != nullptr && !TensorRtIsLoadingThis(tensorrt)) Register(tensorrt);
}

}  // namespace

#define MEGA_DEPLOY_EXPORT extern "C" __attribute__((visibility("default")))

// TensorRT's loadLibrary() calls these two.
MEGA_DEPLOY_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& number) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {Creator()};
  number = 1;
  return creators;
}

MEGA_DEPLOY_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { mega_deploy::SetLoggerFinder(finder); }

// Registers the plugin with the TensorRT of this process: for who opened the library before TensorRT. False where
// TensorRT is not loaded, or has the plugin already.
MEGA_DEPLOY_EXPORT bool initMegaDeployPlugins() {
  GetRegistry* const tensorrt = FindTensorRt();
  if (tensorrt != nullptr) return Register(tensorrt);
  MEGA_DEPLOY_ERROR("%s is not loaded; load TensorRT first, or build the plugin against the headers of yours", kTensorRt);
  return false;
}
