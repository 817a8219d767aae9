// The kernel for AVX2 with fused multiply-add: 16 registers of 8 lanes.
#define LANES 8
#define TILE_ROWS 2
#define COLUMN_VECTORS 2
#define LAPLACE LaplaceAvx2
#include "laplace_kernel.inc"
