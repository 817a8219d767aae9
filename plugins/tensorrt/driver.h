// The CUDA driver, found at run time: the library loads on machines that have none.
#pragma once

#include <cuda.h>

#include "kernels.h"
#include "plan.h"

namespace mega_deploy {

// A CUDA context, and what is asked of it again and again.
struct Context {
  uint64_t id;       // never used twice, unlike the address, where the driver is new enough to tell it
  int capability;    // of its GPU, 10 x major + minor
  int architecture;  // of the kernels for it, see ChooseArchitecture
};

// False, with the reason logged, where the calling thread has no context, or its GPU none of our kernels.
bool CurrentContext(Context* context) noexcept;

// Whether the calling thread has a context; logs nothing.
bool HasContext() noexcept;

// Loads a kernel's image into the current context, once for each; thread-safe. False with the reason logged.
bool LoadKernel(const Context& context, const Kernel& kernel, CUfunction* function) noexcept;

bool LaunchKernel(const Context& context, const Launch& launch, CUstream stream) noexcept;

bool FillWithZeros(uint64_t address, size_t bytes, CUstream stream) noexcept;

}  // namespace mega_deploy
