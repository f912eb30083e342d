// 1: a warp a row.
// launch rows: grid(N) block(32)
#include <cuda_fp16.h>
extern "C" __global__ void rows(scalar_t* out, const scalar_t* x, int64_t N, int64_t D, void*) {
    float sum = 0;
    for (int64_t d = threadIdx.x; d < D; d += 32) sum += float(x[blockIdx.x * D + d]);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x == 0) out[blockIdx.x] = scalar_t(sum);
}
