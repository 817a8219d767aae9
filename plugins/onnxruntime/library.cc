// The custom-op library: registers LaplaceAttention of the domain mega.deploy with ONNX Runtime's CPU provider.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <vector>

#include "laplace.h"

namespace {

using mega_deploy::Kernel;
using mega_deploy::kMaxLanes;
using mega_deploy::kTaskRows;
using mega_deploy::Problem;

// What is used of the API is all in this version, so that runtimes older than the headers are served too.
constexpr uint32_t kApiVersion = 18;

// The best kernel that this machine runs, or the one that the environment variable MEGA_DEPLOY_SIMD names.
Kernel Choose() {
  const char* wanted = std::getenv("MEGA_DEPLOY_SIMD");
  const std::string level = wanted ? wanted : "";
  const bool any = level.empty();
  if (level == "portable") return mega_deploy::LaplacePortable;
#if defined(__x86_64__)
  if ((any || level == "avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return mega_deploy::LaplaceAvx512;
  if ((any || level == "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return mega_deploy::LaplaceAvx2;
#endif
  if (any) return mega_deploy::LaplacePortable;
  ORT_CXX_API_THROW("MEGA_DEPLOY_SIMD is \"" + level + "\"; it may be portable, or where the machine has it avx2 or avx512",
                    ORT_INVALID_ARGUMENT);
}

template <typename T>
T Attribute(const Ort::ConstKernelInfo& info, const char* name, T otherwise) {
  try {
    return info.GetAttribute<T>(name);
  } catch (const Ort::Exception&) {
    return otherwise;
  }
}

OrtStatusPtr Failed(const std::exception& error) {
  return Ort::GetApi().CreateStatus(ORT_INVALID_ARGUMENT, error.what());
}

[[noreturn]] void Refuse(const std::string& what) {
  ORT_CXX_API_THROW("LaplaceAttention: " + what, ORT_INVALID_ARGUMENT);
}

struct Work {
  Problem problem;
  Kernel kernel;
  std::ptrdiff_t tasks_a_batch;
};

void Task(void* data, size_t index) {
  const Work& work = *static_cast<const Work*>(data);
  thread_local std::vector<float> scratch;
  const size_t size = static_cast<size_t>(kTaskRows * (work.problem.n + kMaxLanes));
  if (scratch.size() < size) scratch.resize(size);
  const std::ptrdiff_t batch = static_cast<std::ptrdiff_t>(index) / work.tasks_a_batch;
  const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(index) % work.tasks_a_batch * kTaskRows;
  const std::ptrdiff_t left = work.problem.m - first;
  work.kernel(work.problem, batch, first, left < kTaskRows ? left : kTaskRows, scratch.data());
}

// The elements of a tensor as float32: its own, or converted into `store`.
template <typename T>
const float* Floats(const Ort::ConstValue& value, std::vector<float>& store) {
  if constexpr (std::is_same_v<T, float>) return value.GetTensorData<float>();
  const T* from = value.GetTensorData<T>();
  store.resize(value.GetTensorTypeAndShapeInfo().GetElementCount());
  for (size_t i = 0; i < store.size(); ++i) store[i] = static_cast<float>(from[i]);
  return store.data();
}

// T: of all inputs and the output, float or Ort::Float16_t; the arithmetic is float32.
template <typename T>
class Laplace {
 public:
  explicit Laplace(const OrtKernelInfo* raw) : kernel_(Choose()) {
    const Ort::ConstKernelInfo info(raw);
    const auto kind = Attribute<std::string>(info, "kernel", "l1");
    if (kind != "l1" && kind != "erf") Refuse("the attribute kernel is \"" + kind + "\", neither l1 nor erf");
    erf_ = kind == "erf";
    causal_ = Attribute<int64_t>(info, "causal", 0) != 0;
    mu_ = Attribute<float>(info, "mu", static_cast<float>(std::sqrt(0.5)));
    const float sigma = Attribute<float>(info, "sigma", static_cast<float>(std::sqrt(0.25 / std::acos(-1.0))));
    if (!(sigma > 0)) Refuse("the attribute sigma must be above 0");
    inverse_width_ = static_cast<float>(1 / (sigma * std::sqrt(2.0)));
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    try {
      Compute(Ort::KernelContext(raw));
      return nullptr;
    } catch (const std::exception& error) {
      return Failed(error);
    }
  }

 private:
  void Compute(Ort::KernelContext context) const {
    const auto q = context.GetInput(0), k = context.GetInput(1), v = context.GetInput(2);
    const auto qs = Shape(q), ks = Shape(k), vs = Shape(v);
    if (qs.size() != 3 || ks.size() != 3 || vs.size() != 3) Refuse("q, k and v must have three axes");
    if (qs[0] != ks[0] || qs[0] != vs[0]) Refuse("q, k and v differ in the batch");
    if (qs[2] != ks[2]) Refuse("q and k differ in the channels");
    if (ks[1] != vs[1]) Refuse("k and v differ in the rows");
    Work work{};
    Problem& p = work.problem;
    const std::ptrdiff_t batch = qs[0];
    p.m = qs[1], p.n = ks[1], p.d = qs[2], p.dv = vs[2];
    std::vector<float> stores[6];
    p.q = Floats<T>(q, stores[0]), p.k = Floats<T>(k, stores[1]), p.v = Floats<T>(v, stores[2]);
    p.bias = Optional(context, 3, {batch, p.m, p.n}, &p.bias_stride, stores[3]);
    p.row_scale = Optional(context, 4, {batch, p.m}, &p.row_scale_stride, stores[4]);
    p.erf = erf_, p.causal = causal_, p.mu = mu_, p.inverse_width = inverse_width_;
    const std::vector<int64_t> shape{batch, p.m, p.dv};
    T* const o = context.GetOutput(0, shape).template GetTensorMutableData<T>();
    const size_t elements = static_cast<size_t>(batch * p.m * p.dv);
    if (elements == 0) return;
    if constexpr (std::is_same_v<T, float>) {
      p.o = o;
    } else {
      stores[5].resize(elements);
      p.o = stores[5].data();
    }
    work.kernel = kernel_;
    work.tasks_a_batch = (p.m + kTaskRows - 1) / kTaskRows;
    const size_t tasks = static_cast<size_t>(batch * work.tasks_a_batch);
    // Below some 20 microseconds of work waking a thread costs more than it brings.
    const double operations = 1.0 * batch * p.m * p.n * (3 * p.d + p.dv);
    if (tasks == 1 || operations < 5e5) {
      for (size_t task = 0; task < tasks; ++task) Task(&work, task);
    } else {
      context.ParallelFor(Task, tasks, 0, &work);
    }
    if constexpr (!std::is_same_v<T, float>)
      for (size_t i = 0; i < elements; ++i) o[i] = T(p.o[i]);
  }

  static std::vector<int64_t> Shape(const Ort::ConstValue& value) { return value.GetTensorTypeAndShapeInfo().GetShape(); }

  // An optional input, whose first axis may be 1 for all elements of the batch.
  const float* Optional(const Ort::KernelContext& context, size_t index, std::vector<int64_t> shape,
                        std::ptrdiff_t* stride, std::vector<float>& store) const {
    if (index >= context.GetInputCount()) return nullptr;
    const auto value = context.GetInput(index);
    if (static_cast<const OrtValue*>(value) == nullptr) return nullptr;
    if (!erf_) Refuse("bias and row_scale belong to the kernel erf");
    const auto given = Shape(value);
    if (given.size() == shape.size() && given[0] == 1) shape[0] = 1;
    if (given != shape) Refuse(index == 3 ? "bias must be [1|B, M, N]" : "row_scale must be [1|B, M]");
    *stride = 0;
    if (shape[0] != 1) {
      *stride = 1;
      for (size_t axis = 1; axis < shape.size(); ++axis) *stride *= shape[axis];
    }
    return Floats<T>(value, store);
  }

  Kernel kernel_;
  bool erf_, causal_;
  float mu_, inverse_width_;
};

template <typename T>
struct LaplaceOp : Ort::CustomOpBase<LaplaceOp<T>, Laplace<T>, true> {
  LaplaceOp() { this->version = kApiVersion; }
  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    try {
      *kernel = new Laplace<T>(info);
      return nullptr;
    } catch (const std::exception& error) {
      return Failed(error);
    }
  }
  const char* GetName() const { return "LaplaceAttention"; }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }
  size_t GetInputTypeCount() const { return 5; }
  ONNXTensorElementDataType GetInputType(size_t) const { return Ort::TypeToTensorType<T>::type; }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index < 3 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return Ort::TypeToTensorType<T>::type; }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) return base->GetApi(1)->CreateStatus(ORT_FAIL, "this library needs onnxruntime 1.18 or newer");
  Ort::InitApi(api);
  try {
    // Never freed: sessions point to it as long as they live, and some outlive the library's destructors.
    static const Ort::CustomOpDomain* const domain = [] {
      auto* made = new Ort::CustomOpDomain("mega.deploy");
      made->Add(new LaplaceOp<float>);
      made->Add(new LaplaceOp<Ort::Float16_t>);
      return made;
    }();
    return api->AddCustomOpDomain(options, *domain);
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}
