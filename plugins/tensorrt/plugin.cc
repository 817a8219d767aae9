#include "plugin.h"

#include <cstdio>
#include <new>

#include "driver.h"
#include "log.h"
#include "plan.h"

namespace mega_deploy {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kGood = 0, kBad = -1;  // as TensorRT's interface has it
constexpr int32_t kSmallTactic = 1, kLargeTactic = 2;
constexpr int32_t kMostInputs = 5;
constexpr int64_t kSmallRows = 64;  // up to here the small tile serves where TensorRT has timed none

bool IsServed(DataType type) { return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16; }

DType DTypeOf(DataType type) {
  return type == DataType::kFLOAT ? DType::kFloat32 : type == DataType::kHALF ? DType::kFloat16 : DType::kBFloat16;
}

bool IsConcrete(const Sizes& s) { return s.batch >= 0 && s.m >= 0 && s.n >= 0 && s.d >= 0 && s.dv >= 0; }

bool Match(const PluginTensorDesc* inputs, int32_t optional, Sizes* sizes) {
  const Dims* dims[kMostInputs];
  for (int32_t i = 0; i < NumberOfInputs(optional); ++i) dims[i] = &inputs[i].dims;
  return MatchShapes(dims, optional, sizes);
}

// The sizes at a bound of the profile. Tensors that must agree may have bounds that differ: one of them holds for all.
Sizes AtBound(const DynamicPluginTensorDesc* inputs, Dims DynamicPluginTensorDesc::*bound) {
  const Dims &q = inputs[0].*bound, &k = inputs[1].*bound, &v = inputs[2].*bound;
  return {q.d[0], q.d[1], k.d[1], q.d[2], v.d[2], 0, 0};
}

// Bytes for every shape of the profile, every tile and every GPU; false, with the reason logged, for sizes too large.
bool Workspace(const Attributes& attributes, const DynamicPluginTensorDesc* inputs, size_t* largest) {
  const Sizes least = AtBound(inputs, &DynamicPluginTensorDesc::min);
  const Sizes most = AtBound(inputs, &DynamicPluginTensorDesc::max);
  Problem problem{attributes, DTypeOf(inputs[0].desc.type), most};
  *largest = 0;
  // Channels in multiples of 16 need no padded copy: where they vary, one fewer may need more.
  for (const int64_t d : {most.d, most.d - (least.d < most.d)}) {
    for (const int64_t dv : {most.dv, most.dv - (least.dv < most.dv)}) {
      problem.sizes.d = d;
      problem.sizes.dv = dv;
      size_t bytes = 0;
      if (!LargestWorkspace(problem, &bytes)) return false;
      if (bytes > *largest) *largest = bytes;
    }
  }
  return true;
}

uint64_t Address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

// The kernels read 16 bytes at a time.
bool IsAligned(const void* pointer) { return Address(pointer) % 16 == 0; }

}  // namespace

LaplacePlugin::LaplacePlugin(const Attributes& attributes) noexcept : attributes_(attributes) {
  // Timings depend on what is computed and on the kernels; mu and sigma change neither.
  std::snprintf(timing_cache_id_, sizeof timing_cache_id_, "%s %s%s inputs %d", kBuild, attributes.l1 ? "l1" : "erf",
                attributes.causal ? " causal" : "", attributes.inputs);
}

LaplacePlugin::LaplacePlugin(const LaplacePlugin& other) noexcept : LaplacePlugin(other.attributes_) {
  optional_ = other.optional_;
  tactic_ = other.tactic_;
}

nvinfer1::IPluginCapability* LaplacePlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* LaplacePlugin::clone() noexcept {
  LaplacePlugin* const copy = new (std::nothrow) LaplacePlugin(*this);
  if (copy == nullptr) MEGA_DEPLOY_ERROR("out of memory");
  return copy;
}

bool LaplacePlugin::IsOurs(int32_t number_of_inputs, int32_t number_of_outputs, int32_t* optional) const noexcept {
  *optional = OptionalInputs(attributes_, number_of_inputs);
  if (*optional < 0) return false;
  if (number_of_outputs == 1) return true;
  MEGA_DEPLOY_ERROR("%d outputs; the layer has one", number_of_outputs);
  return false;
}

int32_t LaplacePlugin::getOutputDataTypes(DataType* outputs, int32_t number_of_outputs, const DataType* inputs,
                                          int32_t number_of_inputs) const noexcept {
  int32_t optional;
  if (!IsOurs(number_of_inputs, number_of_outputs, &optional)) return kBad;
  outputs[0] = inputs[2];  // that of v
  return kGood;
}

int32_t LaplacePlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t number_of_inputs,
                                       const nvinfer1::DimsExprs*, int32_t, nvinfer1::DimsExprs* outputs,
                                       int32_t number_of_outputs, nvinfer1::IExprBuilder&) noexcept {
  int32_t optional;
  if (!IsOurs(number_of_inputs, number_of_outputs, &optional)) return kBad;
  if (inputs[0].nbDims != 3 || inputs[2].nbDims != 3) {
    MEGA_DEPLOY_ERROR("q and v have %d and %d axes; they must have three", inputs[0].nbDims, inputs[2].nbDims);
    return kBad;
  }
  outputs[0].nbDims = 3;
  outputs[0].d[0] = inputs[0].d[0];
  outputs[0].d[1] = inputs[0].d[1];
  outputs[0].d[2] = inputs[2].d[2];
  return kGood;
}

bool LaplacePlugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                              int32_t number_of_inputs, int32_t number_of_outputs) noexcept {
  if (position < 0 || position >= number_of_inputs + number_of_outputs) return false;
  const PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  return position == 0 ? IsServed(tensor.type) : tensor.type == tensors[0].desc.type;
}

int32_t LaplacePlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t number_of_inputs,
                                       const DynamicPluginTensorDesc*, int32_t number_of_outputs) noexcept {
  int32_t optional;
  if (!IsOurs(number_of_inputs, number_of_outputs, &optional)) return kBad;
  const Dims* dims[kMostInputs];
  for (int32_t i = 0; i < number_of_inputs; ++i) dims[i] = &inputs[i].desc.dims;
  Sizes sizes;
  if (!MatchShapes(dims, optional, &sizes)) return kBad;
  // Refused here, for getWorkspaceSize has no way to.
  size_t bytes;
  if (IsConcrete(AtBound(inputs, &DynamicPluginTensorDesc::max)) && !Workspace(attributes_, inputs, &bytes)) return kBad;
  optional_ = optional;
  return kGood;
}

size_t LaplacePlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t number_of_inputs,
                                       const DynamicPluginTensorDesc*, int32_t number_of_outputs) const noexcept {
  int32_t optional;
  if (!IsOurs(number_of_inputs, number_of_outputs, &optional)) return 0;
  size_t bytes = 0;
  return Workspace(attributes_, inputs, &bytes) ? bytes : 0;
}

int32_t LaplacePlugin::getNbTactics() noexcept { return 2; }

int32_t LaplacePlugin::getValidTactics(int32_t* tactics, int32_t number_of_tactics) noexcept {
  if (number_of_tactics != getNbTactics()) return kBad;
  tactics[0] = kSmallTactic;
  tactics[1] = kLargeTactic;
  return kGood;
}

int32_t LaplacePlugin::setTactic(int32_t tactic) noexcept {
  if (tactic < 0 || tactic > kLargeTactic) {
    MEGA_DEPLOY_ERROR("tactic %d is none of 1 (small blocks) and 2 (large blocks)", tactic);
    return kBad;
  }
  tactic_ = tactic;
  return kGood;
}

Tile LaplacePlugin::TileFor(int64_t rows) const noexcept {
  if (tactic_ == 0) return rows <= kSmallRows ? Tile::kSmall : Tile::kLarge;
  return tactic_ == kSmallTactic ? Tile::kSmall : Tile::kLarge;
}

int32_t LaplacePlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t number_of_inputs,
                                     const PluginTensorDesc*, int32_t number_of_outputs) noexcept {
  int32_t optional;
  if (!IsOurs(number_of_inputs, number_of_outputs, &optional)) return kBad;
  Sizes sizes;
  if (!Match(inputs, optional, &sizes)) return kBad;
  if (!IsServed(inputs[0].type)) {
    MEGA_DEPLOY_ERROR("the inputs must be float32, float16 or bfloat16");
    return kBad;
  }
  optional_ = optional;
  // Loading is not allowed while a stream is captured, so it happens here; enqueue loads what is missing.
  Context context;
  if (!HasContext()) return kGood;
  if (!CurrentContext(&context)) return kBad;
  const KernelSet set = KernelsOf(context.architecture, attributes_.l1, DTypeOf(inputs[0].type), TileFor(sizes.m));
  for (const Kernel* kernel : {set.pack_columns, set.pack_rows, set.weights, set.product, set.fused}) {
    CUfunction function;
    if (kernel != nullptr && !LoadKernel(context, *kernel, &function)) return kBad;
  }
  return kGood;
}

int32_t LaplacePlugin::enqueue(const PluginTensorDesc* input_descriptions, const PluginTensorDesc*,
                               const void* const* inputs, void* const* outputs, void* workspace,
                               cudaStream_t stream) noexcept {
  if (optional_ < 0) {
    MEGA_DEPLOY_ERROR("enqueue before any shape is known");
    return kBad;
  }
  Sizes s;
  if (!Match(input_descriptions, optional_, &s)) return kBad;
  if (!IsConcrete(s)) {
    MEGA_DEPLOY_ERROR("enqueue with a size that is not known");
    return kBad;
  }
  const DType dtype = DTypeOf(input_descriptions[0].type);
  if (s.batch == 0 || s.m == 0 || s.dv == 0) return kGood;
  Context context;
  if (!CurrentContext(&context)) return kBad;
  if (s.n == 0) {
    size_t bytes = dtype == DType::kFloat32 ? 4 : 2;
    for (const int64_t size : {s.batch, s.m, s.dv}) {
      if (__builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes)) {
        MEGA_DEPLOY_ERROR("the output is larger than all memory");
        return kBad;
      }
    }
    return FillWithZeros(Address(outputs[0]), bytes, stream) ? kGood : kBad;
  }
  bool aligned = IsAligned(outputs[0]) && IsAligned(workspace);
  for (int32_t i = 0; i < NumberOfInputs(optional_); ++i) aligned = aligned && IsAligned(inputs[i]);
  if (!aligned) {
    MEGA_DEPLOY_ERROR("a tensor does not begin at a multiple of 16 bytes");
    return kBad;
  }
  const bool bias = optional_ & kBias, scale = optional_ & kRowScale;
  const Tensors tensors{Address(inputs[0]),
                        Address(inputs[1]),
                        Address(inputs[2]),
                        bias ? Address(inputs[3]) : 0,
                        scale ? Address(inputs[bias ? 4 : 3]) : 0,
                        Address(outputs[0]),
                        Address(workspace)};
  const KernelSet kernels = KernelsOf(context.architecture, attributes_.l1, dtype, TileFor(s.m));
  Plan plan;
  if (!MakePlan({attributes_, dtype, s}, kernels, tensors, &plan)) return kBad;
  for (int i = 0; i < plan.count; ++i)
    if (!LaunchKernel(context, plan.launches[i], stream)) return kBad;
  return kGood;
}

nvinfer1::IPluginV3* LaplacePlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

const nvinfer1::PluginFieldCollection* LaplacePlugin::getFieldsToSerialize() noexcept {
  return fields_.Write(attributes_);
}

}  // namespace mega_deploy
