// Runs the CPU kernels on random problems whose arrays end where the memory does, under a sanitizer.
//
// usage: kernel SECONDS SEED
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "laplace.h"
#include "random.h"

using mega_deploy::Kernel;
using mega_deploy::kMaxLanes;
using mega_deploy::kTaskRows;
using mega_deploy::Problem;

namespace {

// Memory of exactly so many floats, which the sanitizer surrounds with what may not be touched.
struct Exact {
  explicit Exact(const std::vector<float>& values) : data(new float[values.size()]) {
    for (size_t i = 0; i < values.size(); ++i) data[i] = values[i];
  }
  std::unique_ptr<float[]> data;
};

std::vector<Kernel> Kernels() {
  std::vector<Kernel> found{mega_deploy::LaplacePortable};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(mega_deploy::LaplaceAvx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back(mega_deploy::LaplaceAvx512);
#endif
  return found;
}

void Solve(Random& random, const std::vector<Kernel>& kernels) {
  const std::ptrdiff_t batch = 1 + random.Below(3);
  Problem p{};
  p.m = 1 + random.Below(20), p.n = 1 + random.Below(40), p.d = 1 + random.Below(40), p.dv = 1 + random.Below(70);
  p.erf = random.Chance(2), p.causal = random.Chance(2);
  p.mu = random.Float(), p.inverse_width = random.Chance(8) ? std::numeric_limits<float>::max() : random.Float();
  const bool shared = random.Chance(2);
  std::vector<float> values = random.Floats(batch * p.m * p.d);
  if (random.Chance(4)) values[0] = std::numeric_limits<float>::quiet_NaN();
  if (random.Chance(4)) values.back() = std::numeric_limits<float>::infinity();
  if (random.Chance(4)) values.back() = -std::numeric_limits<float>::max();
  const Exact q(values), k(random.Floats(batch * p.n * p.d)), v(random.Floats(batch * p.n * p.dv));
  const Exact bias(random.Floats((shared ? 1 : batch) * p.m * p.n)), scale(random.Floats((shared ? 1 : batch) * p.m));
  const Exact o(std::vector<float>(static_cast<size_t>(batch * p.m * p.dv)));
  p.q = q.data.get(), p.k = k.data.get(), p.v = v.data.get(), p.o = o.data.get();
  if (p.erf && random.Chance(2)) p.bias = bias.data.get(), p.bias_stride = shared ? 0 : p.m * p.n;
  if (p.erf && random.Chance(2)) p.row_scale = scale.data.get(), p.row_scale_stride = shared ? 0 : p.m;

  // As library.cc has onnxruntime's threads do it.
  const std::ptrdiff_t tasks_a_batch = (p.m + kTaskRows - 1) / kTaskRows, tasks = batch * tasks_a_batch;
  for (const Kernel kernel : kernels) {
    std::atomic<std::ptrdiff_t> next{0};
    const auto work = [&] {
      const Exact scratch(std::vector<float>(static_cast<size_t>(kTaskRows * (p.n + kMaxLanes))));
      for (std::ptrdiff_t task = next++; task < tasks; task = next++) {
        const std::ptrdiff_t first = task % tasks_a_batch * kTaskRows, left = p.m - first;
        kernel(p, task / tasks_a_batch, first, left < kTaskRows ? left : kTaskRows, scratch.data.get());
      }
    };
    std::thread other(work);
    work();
    other.join();
  }
}

}  // namespace

int main(int, char** arguments) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(arguments[1]));
  Random random{std::strtoull(arguments[2], nullptr, 10) * 2 + 1};
  const std::vector<Kernel> kernels = Kernels();
  long rounds = 0;
  for (; std::chrono::steady_clock::now() < end; ++rounds) Solve(random, kernels);
  std::printf("%ld problems, %zu kernels\n", rounds, kernels.size());
}
