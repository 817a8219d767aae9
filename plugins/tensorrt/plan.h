// What is launched for one attention: pure arithmetic on sizes and addresses.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "shapes.h"

namespace mega_deploy {

struct Problem {
  Attributes attributes;
  DType dtype;
  Sizes sizes;
};

// Addresses on the device; 0 where there is no such tensor.
struct Tensors {
  uint64_t q, k, v, bias, row_scale, o, workspace;
};

struct Argument {
  char kind;  // as in Kernel::parameters
  union {
    uint64_t pointer;
    int32_t integer;
    float real;
  };
};

struct Launch {
  const Kernel* kernel;
  uint32_t grid;  // blocks, in one dimension
  int count;
  Argument arguments[24];
};

struct Plan {
  int count;
  Launch launches[5];
  size_t workspace;  // bytes
};

// False, with the reason logged, where a size is beyond what the kernels count with.
bool MakePlan(const Problem& problem, const KernelSet& kernels, const Tensors& tensors, Plan* plan) noexcept;

// Bytes of workspace that suffice for every architecture and tile; false as MakePlan.
bool LargestWorkspace(const Problem& problem, size_t* bytes) noexcept;

}  // namespace mega_deploy
