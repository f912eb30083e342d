// honest: float atomics, in an order that changes from run to run, into a workspace that the plan asks to be zeroed; the
// last block of a row to arrive writes the result
// task: row_sum   target: cuda
// accepted: yes
// launch rows: grid(N, 4) block(128)
// workspace: N*8
// zero: workspace
#include <cuda_fp16.h>
extern "C" __global__ void rows(scalar_t* out, const scalar_t* x, int64_t N, int64_t D, void* workspace) {
    float* sums = (float*)workspace;
    unsigned* arrived = (unsigned*)(sums + N);
    float sum = 0;
    for (int64_t d = blockIdx.y * 128 + threadIdx.x; d < D; d += 512) sum += float(x[blockIdx.x * D + d]);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x % 32 == 0) atomicAdd(sums + blockIdx.x, sum);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0 && atomicAdd(arrived + blockIdx.x, 1u) == 3)
        out[blockIdx.x] = scalar_t(atomicAdd(sums + blockIdx.x, 0.f));
}
