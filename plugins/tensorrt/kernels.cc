#include "kernels.h"

#include <cstring>

// All images in one piece, made by build.py beside the table that says where each begins.
__asm__(
    ".pushsection .rodata\n"
    ".balign 64\n"
    ".globl mega_deploy_images\n"
    ".hidden mega_deploy_images\n"
    "mega_deploy_images:\n"
    ".incbin \"images.bin\"\n"
    ".popsection\n");
extern "C" const unsigned char mega_deploy_images[];

namespace mega_deploy {
namespace {

#include "kernels.inc"

// From 9.0 on Triton's machine code uses what only that very architecture has (sm_90a), so it runs nowhere else.
constexpr int kFirstSpecific = 90;

const Kernel* Find(const char* name, int architecture, DType dtype, Tile tile) {
  for (const Kernel& kernel : kKernels)
    if (kernel.architecture == architecture && kernel.dtype == dtype && kernel.tile == tile &&
        std::strcmp(kernel.name, name) == 0)
      return &kernel;
  return nullptr;
}

}  // namespace

const char kBuild[] = MEGA_DEPLOY_BUILD;

int NumberOfArchitectures() noexcept { return static_cast<int>(sizeof kArchitectures / sizeof *kArchitectures); }

int ChooseArchitecture(int capability) noexcept {
  int best = -1, rank = -1;
  for (int index = 0; index < NumberOfArchitectures(); ++index) {
    const Architecture& candidate = kArchitectures[index];
    const int own = candidate.capability;
    const bool same_major = own / 10 == capability / 10;
    const bool runs = candidate.ptx ? own <= capability
                                    : own == capability || (same_major && own < capability && own < kFirstSpecific);
    // Machine code before PTX, and the newest of each.
    const int worth = own + (candidate.ptx ? 0 : 10000);
    if (runs && worth > rank) best = index, rank = worth;
  }
  return best;
}

KernelSet KernelsOf(int architecture, bool l1, DType dtype, Tile tile) noexcept {
  KernelSet set{};
  set.pack_columns = Find("pack_columns", architecture, dtype, Tile::kLarge);
  set.pack_rows = Find("pack_rows", architecture, dtype, Tile::kLarge);
  if (!l1 && dtype != DType::kFloat32) {
    set.fused = Find("erf_fused", architecture, dtype, tile);
  } else {
    set.weights = Find(l1 ? "l1_weights" : "erf_weights", architecture, dtype, tile);
    set.product = Find("product", architecture, dtype, tile);
  }
  return set;
}

const void* ImageOf(const Kernel& kernel) noexcept { return mega_deploy_images + kernel.offset; }

}  // namespace mega_deploy
