// Drives the plugin library as TensorRT does, for Python's ctypes.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>
#include <vector>

using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginV3;
using nvinfer1::PluginTensorDesc;

namespace {

struct Tensor {  // as Python writes it
  int32_t rank;
  int64_t dims[8], least[8], most[8];
  int32_t type, format;
};

Dims MakeDims(int32_t rank, const int64_t* sizes) {
  Dims dims{};
  dims.nbDims = rank;
  std::memcpy(dims.d, sizes, sizeof dims.d);
  return dims;
}

PluginTensorDesc Static(const Tensor& tensor) {
  return {MakeDims(tensor.rank, tensor.dims), static_cast<nvinfer1::DataType>(tensor.type),
          static_cast<nvinfer1::TensorFormat>(tensor.format), 1.f};
}

std::vector<PluginTensorDesc> Static(const Tensor* tensors, int32_t count) {
  std::vector<PluginTensorDesc> made;
  for (int32_t i = 0; i < count; ++i) made.push_back(Static(tensors[i]));
  return made;
}

std::vector<DynamicPluginTensorDesc> Dynamic(const Tensor* tensors, int32_t count) {
  std::vector<DynamicPluginTensorDesc> made;
  for (int32_t i = 0; i < count; ++i) {
    const Tensor& t = tensors[i];
    made.push_back({Static(t), MakeDims(t.rank, t.least), MakeDims(t.rank, t.most), MakeDims(t.rank, t.most)});
  }
  return made;
}

using Hear = void (*)(int32_t severity, const char* line);

struct Logger : nvinfer1::ILogger {
  Hear hear = nullptr;
  void log(Severity severity, const char* line) noexcept override { hear(static_cast<int32_t>(severity), line); }
} logger;

struct Finder : nvinfer1::ILoggerFinder {
  nvinfer1::ILogger* findLogger() override { return logger.hear == nullptr ? nullptr : &logger; }
} finder;

template <typename T>
T* As(void* plugin, nvinfer1::PluginCapabilityType type) {
  return static_cast<T*>(static_cast<IPluginV3*>(plugin)->getCapabilityInterface(type));
}
nvinfer1::IPluginV3OneBuild* Build(void* plugin) {
  return As<nvinfer1::IPluginV3OneBuild>(plugin, nvinfer1::PluginCapabilityType::kBUILD);
}
nvinfer1::IPluginV3OneRuntime* Runtime(void* plugin) {
  return As<nvinfer1::IPluginV3OneRuntime>(plugin, nvinfer1::PluginCapabilityType::kRUNTIME);
}

}  // namespace

extern "C" {

nvinfer1::IPluginCreatorV3One* open_library(const char* path, Hear hear) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return nullptr;
  logger.hear = hear;
  reinterpret_cast<void (*)(nvinfer1::ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
  int32_t number = 0;
  auto* const creators =
      reinterpret_cast<nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"))(number);
  if (number != 1 || std::strcmp(creators[0]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) return nullptr;
  return static_cast<nvinfer1::IPluginCreatorV3One*>(creators[0]);
}

void* create(nvinfer1::IPluginCreatorV3One* creator, const nvinfer1::PluginField* fields, int32_t count, int32_t phase) {
  const nvinfer1::PluginFieldCollection collection{count, fields};
  return creator->createPlugin("layer", &collection, static_cast<nvinfer1::TensorRTPhase>(phase));
}
void destroy(void* plugin) { delete static_cast<IPluginV3*>(plugin); }
void* clone(void* plugin) { return static_cast<IPluginV3*>(plugin)->clone(); }
void* attach(void* plugin) { return Runtime(plugin)->attachToContext(nullptr); }
const nvinfer1::PluginFieldCollection* fields(void* plugin) { return Runtime(plugin)->getFieldsToSerialize(); }
const char* timing_cache_id(void* plugin) { return Build(plugin)->getTimingCacheID(); }

int32_t output_type(void* plugin, const int32_t* types, int32_t inputs) {
  const std::vector<nvinfer1::DataType> given(reinterpret_cast<const nvinfer1::DataType*>(types),
                                              reinterpret_cast<const nvinfer1::DataType*>(types) + inputs);
  nvinfer1::DataType output{};
  const int32_t code = Build(plugin)->getOutputDataTypes(&output, 1, given.data(), inputs);
  return code == 0 ? static_cast<int32_t>(output) : -1;
}

// The plugin moves expressions about and never looks into them: numbers serve.
int32_t output_shape(void* plugin, const int32_t* ranks, int32_t inputs, intptr_t* shape) {
  std::vector<nvinfer1::DimsExprs> given(inputs);
  for (int32_t i = 0; i < inputs; ++i) {
    given[i].nbDims = ranks[i];
    for (int32_t axis = 0; axis < 8; ++axis)
      given[i].d[axis] = reinterpret_cast<const nvinfer1::IDimensionExpr*>(intptr_t{10 * i + axis});
  }
  nvinfer1::DimsExprs output{};
  alignas(16) char unused[64] = {};
  auto& builder = *reinterpret_cast<nvinfer1::IExprBuilder*>(unused);
  if (Build(plugin)->getOutputShapes(given.data(), inputs, nullptr, 0, &output, 1, builder) != 0) return -1;
  for (int32_t axis = 0; axis < output.nbDims; ++axis) shape[axis] = reinterpret_cast<intptr_t>(output.d[axis]);
  return output.nbDims;
}

bool supports(void* plugin, int32_t position, const Tensor* tensors, int32_t inputs) {
  return Build(plugin)->supportsFormatCombination(position, Dynamic(tensors, inputs + 1).data(), inputs, 1);
}
int32_t configure(void* plugin, const Tensor* inputs, int32_t count) {
  const DynamicPluginTensorDesc output{};
  return Build(plugin)->configurePlugin(Dynamic(inputs, count).data(), count, &output, 1);
}
size_t workspace(void* plugin, const Tensor* inputs, int32_t count) {
  const DynamicPluginTensorDesc output{};
  return Build(plugin)->getWorkspaceSize(Dynamic(inputs, count).data(), count, &output, 1);
}
int32_t tactics(void* plugin, int32_t* values) {
  const int32_t number = Build(plugin)->getNbTactics();
  return Build(plugin)->getValidTactics(values, number) == 0 ? number : -1;
}
int32_t set_tactic(void* plugin, int32_t tactic) { return Runtime(plugin)->setTactic(tactic); }
int32_t on_shape_change(void* plugin, const Tensor* inputs, int32_t count) {
  const PluginTensorDesc output{};
  return Runtime(plugin)->onShapeChange(Static(inputs, count).data(), count, &output, 1);
}
int32_t enqueue(void* plugin, const Tensor* inputs, int32_t count, void** addresses, void* output, void* workspace,
                void* stream) {
  const PluginTensorDesc described{};
  return Runtime(plugin)->enqueue(Static(inputs, count).data(), &described, addresses, &output, workspace,
                                  static_cast<cudaStream_t>(stream));
}

}  // extern "C"
