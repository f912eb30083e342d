// honest: partial sums by chunk in the workspace, a second launch adds them up
// task: row_sum   target: cuda
// accepted: yes
// launch partial: grid(N, cdiv(D, 1024)) block(128)
// launch finish: grid(N) block(32)
// workspace: N*cdiv(D, 1024)*4
#include <cuda_fp16.h>
__device__ __forceinline__ float warp_sum(float sum) {
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
}
extern "C" __global__ void partial(scalar_t* out, const scalar_t* x, int64_t N, int64_t D, void* workspace) {
    __shared__ float parts[4];
    float sum = 0;
    for (int64_t d = blockIdx.y * 1024 + threadIdx.x; d < (blockIdx.y + 1) * 1024 && d < D; d += 128)
        sum += float(x[blockIdx.x * D + d]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0)
        ((float*)workspace)[blockIdx.x * gridDim.y + blockIdx.y] = parts[0] + parts[1] + parts[2] + parts[3];
}
extern "C" __global__ void finish(scalar_t* out, const scalar_t* x, int64_t N, int64_t D, void* workspace) {
    int64_t chunks = (D + 1023) / 1024;
    float sum = 0;
    for (int64_t c = threadIdx.x; c < chunks; c += 32) sum += ((float*)workspace)[blockIdx.x * chunks + c];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = scalar_t(sum);
}
