#include "plan.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "log.h"

namespace mega_deploy {
namespace {

// Three sizes below 2^31 and a few bytes an element: their product always fits.
__extension__ typedef __int128 Wide;

constexpr int64_t kPadding = 16;          // elements
constexpr int64_t kAlignment = 256;       // bytes, of each buffer in the workspace
constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
constexpr int64_t kScratchParameters = 2;  // Triton's own last ones, which these kernels leave alone

int64_t RoundUp(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }
int64_t Blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

class Planner {
 public:
  Planner(const Problem& problem, const KernelSet& kernels, const Tensors& tensors, Plan* plan)
      : problem_(problem), s_(problem.sizes), kernels_(kernels), tensors_(tensors), plan_(plan) {
    *plan_ = {};
  }

  bool Make() {
    for (const int64_t size : {s_.batch, s_.m, s_.n, s_.d, s_.dv})
      if (!Fits("a size", size)) return false;
    if (kernels_.fused != nullptr) {
      Fused();
    } else {
      Unfused();
    }
    if (used_ > std::numeric_limits<int64_t>::max() / 2) return Fits("the workspace", used_);
    plan_->workspace = static_cast<size_t>(used_);
    return fits_;
  }

 private:
  // erf in half precision: one kernel, whose rows are read in whole vectors.
  void Fused() {
    const int64_t dp = RoundUp(s_.d, kPadding), vp = RoundUp(s_.dv, kPadding);
    const uint64_t q = PackRows(tensors_.q, s_.m, s_.d, dp);
    const uint64_t k = PackRows(tensors_.k, s_.n, s_.d, dp);
    const uint64_t v = PackRows(tensors_.v, s_.n, s_.dv, vp);
    const Kernel& kernel = *kernels_.fused;
    if (!Begin(kernel, Wide{s_.batch} * Blocks(s_.m, kernel.block_m) * Blocks(s_.dv, kernel.block_n))) return;
    Pointers({q, k, v, tensors_.bias, tensors_.row_scale, tensors_.o});
    Integers({s_.m, s_.n, s_.d, s_.dv, dp, vp});
    Rest();
  }

  // The weights [batch, n, mp] in memory, from transposed queries and keys, then their product with the values.
  void Unfused() {
    const Kernel &weights = *kernels_.weights, &product = *kernels_.product;
    // Rows of both kernels' blocks are read without a mask.
    const int64_t mp = RoundUp(s_.m, std::max<int64_t>({weights.block_m, product.block_m, kPadding}));
    const int64_t np = RoundUp(s_.n, std::max<int64_t>(weights.block_n, kPadding));
    const int64_t vp = RoundUp(s_.dv, kPadding);
    const uint64_t qt = PackColumns(tensors_.q, s_.m, mp);
    const uint64_t kt = PackColumns(tensors_.k, s_.n, np);
    const uint64_t v = PackRows(tensors_.v, s_.n, s_.dv, vp);
    const int64_t element = problem_.dtype == DType::kFloat32 ? 4 : 2;
    const uint64_t w = Buffer(Wide{s_.batch} * s_.n * mp * element);
    if (!Begin(weights, Wide{s_.batch} * Blocks(s_.m, weights.block_m) * Blocks(s_.n, weights.block_n))) return;
    if (problem_.attributes.l1) {
      Pointers({qt, kt, w});
      Integers({s_.m, s_.n, s_.d, mp, np, problem_.attributes.causal});
      End();
    } else {
      Pointers({qt, kt, tensors_.bias, tensors_.row_scale, w});
      Integers({s_.m, s_.n, s_.d, mp, np});
      Rest();
    }
    if (!Begin(product, Wide{s_.batch} * Blocks(s_.m, product.block_m) * Blocks(s_.dv, product.block_n))) return;
    Pointers({w, v, tensors_.o});
    Integers({s_.m, s_.n, s_.dv, mp, vp, problem_.attributes.l1});
    End();
  }

  // What both erf kernels end with.
  void Rest() {
    Integers({s_.bias_batches, s_.scale_batches, problem_.attributes.causal});
    Real(problem_.attributes.mu);
    Real(static_cast<float>(1 / (static_cast<double>(problem_.attributes.sigma) * std::sqrt(2.0))));
    End();
  }

  // x [batch, rows, d] as float32 [batch, d, padded].
  uint64_t PackColumns(uint64_t x, int64_t rows, int64_t padded) {
    const uint64_t out = Buffer(Wide{s_.batch} * s_.d * padded * 4);
    const Kernel& kernel = *kernels_.pack_columns;
    Fits("a matrix of queries or keys", Wide{s_.d} * padded);  // the kernel's offsets within one are int32
    if (s_.d == 0) return out;
    if (!Begin(kernel, Wide{s_.batch} * Blocks(s_.d, kernel.block_n) * Blocks(padded, kernel.block_m))) return out;
    Pointers({x, out});
    Integers({rows, s_.d, padded});
    End();
    return out;
  }

  // x [batch, rows, columns] with rows of `padded` elements: a copy, or x itself where they are that long already.
  uint64_t PackRows(uint64_t x, int64_t rows, int64_t columns, int64_t padded) {
    if (columns == padded) return x;
    const int64_t element = problem_.dtype == DType::kFloat32 ? 4 : 2;
    const Wide all = Wide{s_.batch} * rows;
    const uint64_t out = Buffer(all * padded * element);
    const Kernel& kernel = *kernels_.pack_rows;
    if (!Fits("the rows of all batches", all)) return out;
    const int64_t flat = static_cast<int64_t>(all);
    if (!Begin(kernel, Wide{Blocks(flat, kernel.block_m)} * Blocks(padded, kernel.block_n))) return out;
    Pointers({x, out});
    Integers({flat, columns, padded});
    End();
    return out;
  }

  uint64_t Buffer(Wide bytes) {
    const uint64_t place = tensors_.workspace + static_cast<uint64_t>(used_);
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return place;
  }

  bool Begin(const Kernel& kernel, Wide grid) {
    if (!Fits("the number of blocks", grid)) return false;
    launch_ = &plan_->launches[plan_->count];
    launch_->kernel = &kernel;
    launch_->grid = static_cast<uint32_t>(grid);
    return true;
  }

  void Pointers(std::initializer_list<uint64_t> values) {
    for (const uint64_t value : values) {
      Argument& argument = launch_->arguments[launch_->count++];
      argument.kind = 'p';
      argument.pointer = value;
    }
  }

  void Integers(std::initializer_list<int64_t> values) {
    for (const int64_t value : values) {
      Argument& argument = launch_->arguments[launch_->count++];
      Fits("a padded size", value);
      argument.kind = 'i';
      argument.integer = static_cast<int32_t>(value);
    }
  }

  void Real(float value) {
    Argument& argument = launch_->arguments[launch_->count++];
    argument.kind = 'f';
    argument.real = value;
  }

  void End() {
    for (int64_t i = 0; i < kScratchParameters; ++i) Pointers({0});
    ++plan_->count;
  }

  bool Fits(const char* what, Wide value) {
    if (value >= 0 && value <= kLargest) return true;
    if (fits_)
      MEGA_DEPLOY_ERROR("batch %" PRId64 ", M %" PRId64 ", N %" PRId64 ", D %" PRId64 ", Dv %" PRId64
                        ": %s is beyond 2^31 - 1; split the batch or the sequence",
                        s_.batch, s_.m, s_.n, s_.d, s_.dv, what);
    return fits_ = false;
  }

  const Problem& problem_;
  const Sizes& s_;
  const KernelSet& kernels_;
  const Tensors& tensors_;
  Plan* plan_;
  Launch* launch_ = nullptr;
  Wide used_ = 0;
  bool fits_ = true;
};

}  // namespace

bool MakePlan(const Problem& problem, const KernelSet& kernels, const Tensors& tensors, Plan* plan) noexcept {
  return Planner(problem, kernels, tensors, plan).Make();
}

bool LargestWorkspace(const Problem& problem, size_t* bytes) noexcept {
  *bytes = 0;
  const Sizes& s = problem.sizes;
  if (s.batch == 0 || s.m == 0 || s.n == 0 || s.dv == 0) return true;
  for (int architecture = 0; architecture < NumberOfArchitectures(); ++architecture) {
    for (const Tile tile : {Tile::kSmall, Tile::kLarge}) {
      const KernelSet kernels = KernelsOf(architecture, problem.attributes.l1, problem.dtype, tile);
      Plan plan;
      if (!MakePlan(problem, kernels, Tensors{}, &plan)) return false;
      *bytes = std::max(*bytes, plan.workspace);
    }
  }
  return true;
}

}  // namespace mega_deploy
