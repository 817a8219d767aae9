// A stand-in for libnvinfer: a registry that opens libraries and counts what is registered with it.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <vector>

namespace {

using namespace nvinfer1;

class Registry final : public IPluginRegistry {
 public:
  bool registerCreator(IPluginCreatorInterface& creator, const char* const) noexcept override {
    for (auto* known : creators) if (known == &creator) return false;
    creators.push_back(&creator);
    return true;
  }
  // As TensorRT's: refused where a plugin of the library is registered already.
  void* loadLibrary(const char* path) noexcept override {
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return nullptr;
    int32_t number = 0;
    auto* const made = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"))(number);
    return registerCreator(*made[0], "") ? library : nullptr;
  }
  bool registerCreator(IPluginCreator&, const char* const) noexcept override { return false; }
  IPluginCreator* const* getPluginCreatorList(int32_t* const) const noexcept override { return nullptr; }
  IPluginCreator* getPluginCreator(const char*, const char*, const char*) noexcept override { return nullptr; }
  void setErrorRecorder(IErrorRecorder* const) noexcept override {}
  IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
  bool deregisterCreator(const IPluginCreator&) noexcept override { return false; }
  bool isParentSearchEnabled() const override { return false; }
  void setParentSearchEnabled(bool const) override {}
  void deregisterLibrary(void*) noexcept override {}
  IPluginCreatorInterface* const* getAllCreators(int32_t* const) const noexcept override { return nullptr; }
  IPluginCreatorInterface* getCreator(const char*, const char*, const char*) noexcept override { return nullptr; }
  bool deregisterCreator(const IPluginCreatorInterface&) noexcept override { return false; }
  IPluginResource* acquirePluginResource(const char*, IPluginResource*) noexcept override { return nullptr; }
  int32_t releasePluginResource(const char*) noexcept override { return 0; }
  IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* const) noexcept override { return nullptr; }

  std::vector<IPluginCreatorInterface*> creators;
} registry;

}  // namespace

extern "C" {

__attribute__((visibility("default"))) nvinfer1::IPluginRegistry* getPluginRegistry() noexcept { return &registry; }
bool fake_load(const char* path) { return registry.loadLibrary(path) != nullptr; }
int fake_registered() { return static_cast<int>(registry.creators.size()); }

}  // extern "C"
