// LaplaceAttention on one CPU core: the problem, and the function that solves a few of its rows.
//
// The kernel (laplace_kernel.inc) is compiled once for each instruction set, with that set's flags, and chosen at run
// time. None of these files may use inline functions of the standard library: the linker keeps one copy of each, and
// that copy may hold instructions that the machine lacks.
#pragma once

#include <cstddef>

namespace mega_deploy {

// Rows of q that one task computes.
constexpr std::ptrdiff_t kTaskRows = 8;
// Columns by which a row of weights may be longer than the keys: the widest vector.
constexpr std::ptrdiff_t kMaxLanes = 16;

struct Problem {
  const float* q;          // [batch, m, d]
  const float* k;          // [batch, n, d]
  const float* v;          // [batch, n, dv]
  const float* bias;       // [1 | batch, m, n], or null
  const float* row_scale;  // [1 | batch, m], or null
  float* o;                // [batch, m, dv]
  std::ptrdiff_t m, n, d, dv;
  std::ptrdiff_t bias_stride, row_scale_stride;  // between elements of the batch; 0 where all share one
  bool erf, causal;                              // causal: row i sees the keys 0..i
  float mu, inverse_width;                       // erf: w = (1 + erf((s - mu) * inverse_width)) / 2
};

// Computes the rows [first, first + rows) of one element of the batch; rows is at most kTaskRows.
// scratch: kTaskRows * (n + kMaxLanes) floats.
using Kernel = void (*)(const Problem&, std::ptrdiff_t batch, std::ptrdiff_t first, std::ptrdiff_t rows,
                        float* scratch);

void LaplacePortable(const Problem&, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t, float*);
#if defined(__x86_64__)
void LaplaceAvx2(const Problem&, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t, float*);
void LaplaceAvx512(const Problem&, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t, float*);
#endif

}  // namespace mega_deploy
