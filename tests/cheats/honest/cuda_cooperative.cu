// honest: one cooperative launch with a barrier over the grid between its two phases
// task: row_sum   target: cuda
// accepted: yes
// launch rows: grid(sm_count) block(256) cooperative
// workspace: N*4*4
#include <cooperative_groups.h>
#include <cuda_fp16.h>
extern "C" __global__ void rows(scalar_t* out, const scalar_t* x, int64_t N, int64_t D, void* workspace) {
    float* parts = (float*)workspace;
    for (int64_t job = blockIdx.x * 8ll + threadIdx.x / 32; job < N * 4; job += gridDim.x * 8ll) {
        float sum = 0;
        for (int64_t d = job % 4 * 32 + threadIdx.x % 32; d < D; d += 128) sum += float(x[job / 4 * D + d]);
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (threadIdx.x % 32 == 0) parts[job] = sum;
    }
    cooperative_groups::this_grid().sync();
    for (int64_t n = blockIdx.x * 256ll + threadIdx.x; n < N; n += gridDim.x * 256ll)
        out[n] = scalar_t(parts[4 * n] + parts[4 * n + 1] + parts[4 * n + 2] + parts[4 * n + 3]);
}
