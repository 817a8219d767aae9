// The kernel for any machine: SSE2 or NEON, by the compiler's own choice.
#define LANES 4
#define TILE_ROWS 2
#define COLUMN_VECTORS 2
#define LAPLACE LaplacePortable
#include "laplace_kernel.inc"
