// 1: a warp a row: mean, variance, result.
// launch rows: grid(N) block(32)
#include <cuda_fp16.h>
extern "C" __global__ void rows(scalar_t* out, const scalar_t* x, const scalar_t* weight, const scalar_t* bias,
                                int64_t N, int64_t D, float eps, void*) {
    const scalar_t* row = x + blockIdx.x * D;
    float mean = 0, variance = 0;
    for (int64_t d = threadIdx.x; d < D; d += 32) mean += float(row[d]);
    for (int step = 16; step; step /= 2) mean += __shfl_xor_sync(~0u, mean, step);
    mean /= D;
    for (int64_t d = threadIdx.x; d < D; d += 32) variance += (float(row[d]) - mean) * (float(row[d]) - mean);
    for (int step = 16; step; step /= 2) variance += __shfl_xor_sync(~0u, variance, step);
    float inverse = rsqrtf(variance / D + eps);
    for (int64_t d = threadIdx.x; d < D; d += 32)
        out[blockIdx.x * D + d] = scalar_t((float(row[d]) - mean) * inverse * float(weight[d]) + float(bias[d]));
}
