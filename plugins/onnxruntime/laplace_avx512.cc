// The kernel for AVX-512: 32 registers of 16 lanes.
#define LANES 16
#define TILE_ROWS 4
#define COLUMN_VECTORS 4
#define LAPLACE LaplaceAvx512
#include "laplace_kernel.inc"
