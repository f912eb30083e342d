// 1: a warp a row.
// launch rows: grid(N) block(32)
#include <cuda_fp16.h>
#define INFINITY __int_as_float(0x7f800000)
extern "C" __global__ void rows(scalar_t* out, const scalar_t* x, int64_t N, int64_t D, void*) {
    const scalar_t* row = x + blockIdx.x * D;
    float most = -INFINITY, sum = 0;
    for (int64_t d = threadIdx.x; d < D; d += 32) most = fmaxf(most, float(row[d]));
    for (int step = 16; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    for (int64_t d = threadIdx.x; d < D; d += 32) sum += expf(float(row[d]) - most);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    for (int64_t d = threadIdx.x; d < D; d += 32) out[blockIdx.x * D + d] = scalar_t(expf(float(row[d]) - most) / sum);
}
