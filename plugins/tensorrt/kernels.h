// The GPU kernels that the library carries, and which of them a GPU takes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mega_deploy {

enum class DType { kFloat32, kFloat16, kBFloat16 };
enum class Tile { kSmall, kLarge };

struct Architecture {
  int capability;  // 10 x major + minor
  bool ptx;        // source for the driver's own compiler, and not machine code
};

struct Kernel {
  const char* name;  // of the function in its image
  DType dtype;
  Tile tile;
  int architecture;  // an index, see Architectures
  int block_m, block_n;
  int threads;
  uint32_t shared_bytes;
  const char* parameters;  // a letter each, p pointer, i int32, f float32
  size_t offset;           // of its image
};

// The kernels of one attention; weights and product, or fused, are null.
struct KernelSet {
  const Kernel *pack_columns, *pack_rows, *weights, *product, *fused;
};

extern const char kBuild[];  // tells builds of this library apart

int NumberOfArchitectures() noexcept;

// Index of the architecture whose kernels a GPU of this capability takes; -1 where there is none.
int ChooseArchitecture(int capability) noexcept;

KernelSet KernelsOf(int architecture, bool l1, DType dtype, Tile tile) noexcept;

const void* ImageOf(const Kernel& kernel) noexcept;

}  // namespace mega_deploy
