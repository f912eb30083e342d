// honest: 128 KB of dynamic shared memory a block
// task: softmax   target: cuda
// accepted: yes
// launch rows: grid(cdiv(N, 8)) block(256) smem(131072)
#include <cuda_fp16.h>
extern "C" __global__ void rows(scalar_t* out, const scalar_t* x, int64_t N, int64_t D, void*) {
    extern __shared__ float stage[];
    int64_t n = blockIdx.x * 8ll + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (n >= N) return;
    float* row = stage + threadIdx.x / 32 * 4096;
    float most = __int_as_float(0xff800000), sum = 0;
    for (int64_t d = lane; d < D; d += 32) most = fmaxf(most, row[d] = float(x[n * D + d]));
    for (int step = 16; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    for (int64_t d = lane; d < D; d += 32) sum += row[d] = expf(row[d] - most);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    for (int64_t d = lane; d < D; d += 32) out[n * D + d] = scalar_t(row[d] / sum);
}
