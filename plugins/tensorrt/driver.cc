#include "driver.h"

#include <dlfcn.h>

#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "log.h"

namespace mega_deploy {
namespace {

// What every launch may have; more must be asked for.
constexpr uint32_t kCommonSharedBytes = 48 * 1024;

struct Driver {
  CUresult (*context_get)(CUcontext*);
  CUresult (*context_id)(CUcontext, unsigned long long*);  // null before CUDA 12
  CUresult (*context_device)(CUdevice*);
  CUresult (*device_attribute)(int*, CUdevice_attribute, CUdevice);
  CUresult (*module_load)(CUmodule*, const void*, unsigned int, CUjit_option*, void**);
  CUresult (*module_function)(CUfunction*, CUmodule, const char*);
  CUresult (*function_attribute)(CUfunction, CUfunction_attribute, int);
  CUresult (*launch)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**,
                     void**);
  CUresult (*fill)(CUdeviceptr, unsigned char, size_t, CUstream);
  CUresult (*error_string)(CUresult, const char**);
  const char* missing;  // the library or function that is not there, else null
};

template <typename T>
void Look(void* library, const char* name, T** function, const char** missing) {
  *function = reinterpret_cast<T*>(dlsym(library, name));
  if (*function == nullptr && *missing == nullptr) *missing = name;
}

Driver OpenDriver() {
  Driver driver{};
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);  // never closed: TensorRT holds it as well
  if (library == nullptr) {
    driver.missing = "libcuda.so.1";
    return driver;
  }
  const char* optional = nullptr;
  Look(library, "cuCtxGetId", &driver.context_id, &optional);
  Look(library, "cuCtxGetCurrent", &driver.context_get, &driver.missing);
  Look(library, "cuCtxGetDevice", &driver.context_device, &driver.missing);
  Look(library, "cuDeviceGetAttribute", &driver.device_attribute, &driver.missing);
  Look(library, "cuModuleLoadDataEx", &driver.module_load, &driver.missing);
  Look(library, "cuModuleGetFunction", &driver.module_function, &driver.missing);
  Look(library, "cuFuncSetAttribute", &driver.function_attribute, &driver.missing);
  Look(library, "cuLaunchKernel", &driver.launch, &driver.missing);
  Look(library, "cuMemsetD8Async", &driver.fill, &driver.missing);
  Look(library, "cuGetErrorString", &driver.error_string, &driver.missing);
  return driver;
}

const Driver& GetDriver() {
  static const Driver driver = OpenDriver();
  return driver;
}

// Whether a call went well; logs it where it did not.
bool Good(const Driver& driver, const char* call, CUresult result, const char* detail = "") {
  if (result == CUDA_SUCCESS) return true;
  const char* text = nullptr;
  driver.error_string(result, &text);
  MEGA_DEPLOY_ERROR("%s fails: %s (CUDA error %d)%s%s", call, text == nullptr ? "unknown" : text,
                    static_cast<int>(result), *detail ? ": " : "", detail);
  return false;
}

// The functions loaded so far, of every context. Modules are never unloaded: a context takes its own with it.
struct Loaded {
  std::mutex mutex;
  std::map<uint64_t, Context> contexts;
  std::map<std::pair<uint64_t, const Kernel*>, CUfunction> functions;
};

Loaded& GetLoaded() {
  static Loaded& loaded = *new Loaded;  // never destroyed: threads may still launch while the process exits
  return loaded;
}

bool Describe(const Driver& driver, Context* context) {
  CUdevice device = 0;
  int major = 0, minor = 0;
  if (!Good(driver, "cuCtxGetDevice", driver.context_device(&device))) return false;
  for (const auto& [value, attribute] : {std::pair{&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR},
                                         std::pair{&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR}})
    if (!Good(driver, "cuDeviceGetAttribute", driver.device_attribute(value, attribute, device))) return false;
  context->capability = 10 * major + minor;
  context->architecture = ChooseArchitecture(context->capability);
  if (context->architecture >= 0) return true;
  MEGA_DEPLOY_ERROR("this GPU has compute capability %d.%d, for which the library holds no kernels; it needs 8.0 or newer",
                    major, minor);
  return false;
}

bool Load(const Driver& driver, const Kernel& kernel, CUfunction* function) {
  char why[512] = "";
  CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
  void* values[] = {why, reinterpret_cast<void*>(sizeof why)};
  CUmodule module = nullptr;
  if (!Good(driver, "cuModuleLoadDataEx", driver.module_load(&module, ImageOf(kernel), 2, options, values), why))
    return false;
  if (!Good(driver, "cuModuleGetFunction", driver.module_function(function, module, kernel.name), kernel.name))
    return false;
  if (kernel.shared_bytes <= kCommonSharedBytes) return true;
  return Good(driver, "cuFuncSetAttribute",
              driver.function_attribute(*function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                        static_cast<int>(kernel.shared_bytes)),
              kernel.name);
}

}  // namespace

bool HasContext() noexcept {
  const Driver& driver = GetDriver();
  CUcontext current = nullptr;
  return driver.missing == nullptr && driver.context_get(&current) == CUDA_SUCCESS && current != nullptr;
}

bool CurrentContext(Context* context) noexcept {
  const Driver& driver = GetDriver();
  if (driver.missing != nullptr) {
    MEGA_DEPLOY_ERROR("the CUDA driver lacks %s; install NVIDIA's driver", driver.missing);
    return false;
  }
  CUcontext current = nullptr;
  if (!Good(driver, "cuCtxGetCurrent", driver.context_get(&current))) return false;
  if (current == nullptr) {
    MEGA_DEPLOY_ERROR("the calling thread has no CUDA context; call cudaSetDevice first");
    return false;
  }
  unsigned long long id = reinterpret_cast<uintptr_t>(current);
  if (driver.context_id != nullptr && !Good(driver, "cuCtxGetId", driver.context_id(current, &id))) return false;
  try {
    Loaded& loaded = GetLoaded();
    const std::lock_guard<std::mutex> lock(loaded.mutex);
    const auto found = loaded.contexts.find(id);
    if (found != loaded.contexts.end()) {
      *context = found->second;
      return true;
    }
    context->id = id;
    if (!Describe(driver, context)) return false;
    loaded.contexts.emplace(id, *context);
    return true;
  } catch (const std::exception& error) {
    MEGA_DEPLOY_ERROR("%s", error.what());
    return false;
  }
}

bool LoadKernel(const Context& context, const Kernel& kernel, CUfunction* function) noexcept {
  try {
    Loaded& loaded = GetLoaded();
    const std::lock_guard<std::mutex> lock(loaded.mutex);
    const auto key = std::pair(context.id, &kernel);
    const auto found = loaded.functions.find(key);
    if (found != loaded.functions.end()) {
      *function = found->second;
      return true;
    }
    if (!Load(GetDriver(), kernel, function)) return false;
    loaded.functions.emplace(key, *function);
    return true;
  } catch (const std::exception& error) {
    MEGA_DEPLOY_ERROR("%s", error.what());
    return false;
  }
}

bool LaunchKernel(const Context& context, const Launch& launch, CUstream stream) noexcept {
  const Kernel& kernel = *launch.kernel;
  void* addresses[sizeof launch.arguments / sizeof *launch.arguments];
  const size_t count = static_cast<size_t>(launch.count);
  bool matches = count == std::strlen(kernel.parameters);
  for (size_t i = 0; i < count && matches; ++i) {
    matches = launch.arguments[i].kind == kernel.parameters[i];
    addresses[i] = const_cast<uint64_t*>(&launch.arguments[i].pointer);  // of the union, whichever member it holds
  }
  if (!matches) {
    MEGA_DEPLOY_ERROR("%s takes other parameters (%s) than the plan gives; build the plugin anew", kernel.name,
                      kernel.parameters);
    return false;
  }
  CUfunction function = nullptr;
  if (!LoadKernel(context, kernel, &function)) return false;
  const Driver& driver = GetDriver();
  return Good(driver, "cuLaunchKernel",
              driver.launch(function, launch.grid, 1, 1, static_cast<unsigned>(kernel.threads), 1, 1,
                            kernel.shared_bytes, stream, addresses, nullptr),
              kernel.name);
}

bool FillWithZeros(uint64_t address, size_t bytes, CUstream stream) noexcept {
  const Driver& driver = GetDriver();
  return Good(driver, "cuMemsetD8Async", driver.fill(address, 0, bytes, stream));
}

}  // namespace mega_deploy
