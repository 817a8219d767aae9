// Drives the TensorRT plugin with fields and shapes that no engine ought to hold, under a sanitizer.
//
// Each layer is made from fields that may have any name, type, length and bytes, as an engine's serialised plan may; what
// is made is cloned, written, read back, configured, and run on a driver that is not there, from several threads.
//
// usage: plugin SECONDS SEED THREADS
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "creator.h"
#include "plan.h"
#include "plugin.h"
#include "random.h"

using namespace nvinfer1;
using mega_deploy::LaplacePlugin;

namespace {

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "wrong: %s\n", what);
  std::abort();
}

// Fields in memory of their very size.
class Fields {
 public:
  void Add(const std::string& name, PluginFieldType type, const void* bytes, size_t size, int32_t length) {
    char* const text = Keep(name.c_str(), name.size() + 1);
    fields_.emplace_back(text, bytes == nullptr ? nullptr : Keep(bytes, size), type, length);
  }
  const PluginFieldCollection* Get() {
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
  }
  std::vector<PluginField>& All() { return fields_; }

 private:
  char* Keep(const void* bytes, size_t size) {
    memory_.emplace_back(new char[size]);
    std::memcpy(memory_.back().get(), bytes, size);
    return memory_.back().get();
  }

  std::vector<std::unique_ptr<char[]>> memory_;
  std::vector<PluginField> fields_;
  PluginFieldCollection collection_{};
};

size_t SizeOf(PluginFieldType type) {
  switch (type) {
    case PluginFieldType::kCHAR:
    case PluginFieldType::kINT8: return 1;
    case PluginFieldType::kFLOAT16:
    case PluginFieldType::kINT16: return 2;
    case PluginFieldType::kFLOAT64: return 8;
    case PluginFieldType::kDIMS: return sizeof(Dims);
    default: return 4;
  }
}

void Fill(Random& random, Fields& fields) {
  static const char* const names[] = {"kernel", "causal", "mu", "sigma", "inputs", "plugin_version", "", "other"};
  static const char* const kernels[] = {"l1", "erf", "l2", "", "erf\n\x1b[31m"};
  for (int64_t count = random.Below(8); count > 0; --count) {
    std::string name = names[random.Below(8)];
    if (random.Chance(12)) name = std::string(static_cast<size_t>(random.Below(3000)), static_cast<char>(1 + random.Below(255)));
    auto type = static_cast<PluginFieldType>(random.Below(11));
    std::string bytes;
    if (name == "kernel" && !random.Chance(4)) {
      type = PluginFieldType::kCHAR;
      bytes = kernels[random.Chance(4) ? random.Below(5) : random.Below(2)];
      if (random.Chance(2)) bytes.push_back('\0');
    } else if ((name == "causal" || name == "inputs") && !random.Chance(4)) {
      type = PluginFieldType::kINT32;
      const int32_t value = static_cast<int32_t>(random.Below(6)) - 2;
      bytes.assign(reinterpret_cast<const char*>(&value), sizeof value);
    } else if ((name == "mu" || name == "sigma") && !random.Chance(4)) {
      type = PluginFieldType::kFLOAT32;
      const float value = random.Float();
      bytes.assign(reinterpret_cast<const char*>(&value), sizeof value);
    } else {
      bytes.resize(static_cast<size_t>(random.Below(40)) * SizeOf(type));
      for (char& byte : bytes) byte = static_cast<char>(random.Next());
    }
    const auto length = static_cast<int32_t>(bytes.size() / SizeOf(type));
    const bool nothing = random.Chance(16);
    fields.Add(name, type, nothing ? nullptr : bytes.data(), bytes.size(), random.Chance(16) ? -1 : length);
    if (random.Chance(64)) fields.All().back().name = nullptr;
  }
}

Dims MakeDims(Random& random, int32_t rank, bool wild) {
  Dims dims{};
  dims.nbDims = random.Chance(24) ? static_cast<int32_t>(random.Below(12)) - 2 : rank;
  for (int64_t& size : dims.d) size = wild ? random.Size() : random.Below(40);
  return dims;
}

// Shapes of q, k, v, bias and row_scale that mostly agree.
std::vector<Dims> Shapes(Random& random, bool wild) {
  const Dims s = MakeDims(random, 5, wild);
  const int64_t batch = s.d[0], m = s.d[1], n = s.d[2], d = s.d[3], dv = s.d[4];
  std::vector<Dims> made{{3, {batch, m, d}}, {3, {batch, n, d}}, {3, {batch, n, dv}}};
  if (random.Chance(8)) {
    made.push_back({2, {batch, m}});
  } else {
    made.push_back({3, {random.Chance(2) ? 1 : batch, m, n}});
  }
  made.push_back({2, {batch, m}});
  for (Dims& one : made)
    if (random.Chance(40)) one = MakeDims(random, 3, wild);
  return made;
}

PluginTensorDesc Describe(Random& random, const Dims& dims, DataType type) {
  const bool odd = random.Chance(40);
  return {dims, odd ? static_cast<DataType>(random.Below(9)) : type,
          odd ? static_cast<TensorFormat>(random.Below(9)) : TensorFormat::kLINEAR, 1.f};
}

void Enqueue(Random& random, IPluginV3OneRuntime& runtime, const std::vector<PluginTensorDesc>& inputs, int32_t count) {
  // The driver that is not there fills, where there are no keys, and else only looks at what it is told.
  const auto& q = inputs[0].dims;
  const auto& v = inputs[2].dims;
  const bool small = q.d[0] >= 0 && q.d[0] < 64 && q.d[1] >= 0 && q.d[1] < 64 && v.d[2] >= 0 && v.d[2] < 64;
  // Without keys the output is filled: one of large sizes would have to be there.
  const bool filled = inputs[1].dims.d[1] <= 0 || inputs[2].dims.d[1] <= 0;
  if (!small && filled && q.d[0] >= 0 && q.d[1] >= 0 && v.d[2] >= 0) return;
  std::vector<float> output(small ? static_cast<size_t>(q.d[0] * q.d[1] * v.d[2]) + 4 : 4);
  const auto aligned = (reinterpret_cast<uintptr_t>(output.data()) + 15) & ~uintptr_t{15};
  void* const out = reinterpret_cast<void*>(random.Chance(16) ? aligned + 4 : aligned);
  const void* addresses[5] = {};
  for (auto& address : addresses) address = reinterpret_cast<const void*>(static_cast<uintptr_t>(random.Below(1 << 20)) * 16);
  const PluginTensorDesc described{};
  (void)runtime.onShapeChange(inputs.data(), count, &described, 1);
  (void)runtime.enqueue(inputs.data(), &described, addresses, &out, nullptr, nullptr);
}

void Use(Random& random, IPluginV3* layer) {
  auto& build = *static_cast<IPluginV3OneBuild*>(layer->getCapabilityInterface(PluginCapabilityType::kBUILD));
  auto& runtime = *static_cast<IPluginV3OneRuntime*>(layer->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  if (layer->getCapabilityInterface(PluginCapabilityType::kCORE) == nullptr) Fail("no core");
  const auto count = random.Chance(16) ? static_cast<int32_t>(random.Below(6)) : static_cast<int32_t>(3 + random.Below(3));
  const bool wild = random.Chance(2);
  const DataType types[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
  const DataType type = types[random.Below(3)];
  const std::vector<Dims> most = Shapes(random, wild), least = Shapes(random, wild);
  std::vector<DynamicPluginTensorDesc> dynamic;
  std::vector<PluginTensorDesc> fixed;
  std::vector<DimsExprs> expressions(6);
  for (size_t i = 0; i < 5; ++i) {
    fixed.push_back(Describe(random, most[i], type));
    dynamic.push_back({fixed.back(), random.Chance(2) ? least[i] : most[i], most[i], most[i]});
    expressions[i].nbDims = most[i].nbDims;
  }
  dynamic.push_back(dynamic[0]);
  std::vector<DataType> given(5, type);
  DataType made{};
  (void)build.getOutputDataTypes(&made, 1, given.data(), count);
  alignas(16) char unused[64] = {};
  DimsExprs shape{};
  (void)build.getOutputShapes(expressions.data(), count, nullptr, 0, &shape, 1, reinterpret_cast<IExprBuilder&>(unused));
  if (count > 0) {
    for (int32_t position = -1; position <= count + 1; ++position)
      (void)build.supportsFormatCombination(position, dynamic.data(), count, 1);
  }
  const bool taken = build.configurePlugin(dynamic.data(), count, &dynamic[5], 1) == 0;
  const size_t bytes = build.getWorkspaceSize(dynamic.data(), count, &dynamic[5], 1);
  if (taken && bytes > (size_t{1} << 62)) Fail("a workspace beyond all sizes");
  int32_t tactics[2];
  if (build.getValidTactics(tactics, build.getNbTactics()) != 0) Fail("tactics");
  (void)runtime.setTactic(static_cast<int32_t>(random.Below(5)) - 1);
  Enqueue(random, runtime, fixed, count);
}

void Round(Random& random, mega_deploy::LaplaceCreator& creator) {
  Fields fields;
  Fill(random, fields);
  const auto phase = random.Chance(2) ? TensorRTPhase::kBUILD : TensorRTPhase::kRUNTIME;
  std::unique_ptr<IPluginV3> layer(creator.createPlugin("layer", random.Chance(99) ? nullptr : fields.Get(), phase));
  if (!layer) return;
  Use(random, layer.get());
  std::unique_ptr<IPluginV3> copy(layer->clone());
  auto& runtime = *static_cast<IPluginV3OneRuntime*>(copy->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  std::unique_ptr<IPluginV3> again(creator.createPlugin("layer", runtime.getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
  if (!again) Fail("a layer is not made from what it writes");
  Use(random, again.get());
  layer.reset();
  std::unique_ptr<IPluginV3> attached(runtime.attachToContext(nullptr));
  copy.reset();
  Use(random, attached.get());
}

struct Silent final : ILogger {
  void log(Severity, const char* line) noexcept override {
    if (std::strlen(line) > 1100) Fail("a line of the log is too long");
  }
} silent;

struct Finder final : ILoggerFinder {
  ILogger* findLogger() override { return &silent; }
} finder;

int Launched(const char*, const unsigned char*, const unsigned*, const unsigned*, unsigned, void*, void**) { return 0; }

}  // namespace

namespace mega_deploy {
void SetLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;
}

int main(int, char** arguments) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(arguments[1]));
  const uint64_t seed = std::strtoull(arguments[2], nullptr, 10) * 1000 + 1;
  mega_deploy::SetLoggerFinder(&finder);
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
  if (driver == nullptr) Fail(dlerror());
  reinterpret_cast<void (*)(decltype(&Launched))>(dlsym(driver, "fake_callback"))(Launched);
  mega_deploy::LaplaceCreator creator;
  std::vector<std::thread> threads;
  std::vector<long> rounds(static_cast<size_t>(std::atoi(arguments[3])));
  for (size_t index = 0; index < rounds.size(); ++index)
    threads.emplace_back([&, index] {
      Random random{(seed + index) * 2 + 1};
      for (int i = 0; i < 16; ++i) random.Next();
      for (; std::chrono::steady_clock::now() < end; ++rounds[index]) Round(random, creator);
    });
  long total = 0;
  for (size_t index = 0; index < rounds.size(); ++index) threads[index].join(), total += rounds[index];
  std::printf("%ld layers\n", total);
}
