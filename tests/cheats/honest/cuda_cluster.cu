// honest: a cluster of four blocks a row, partial sums exchanged through distributed shared memory. Needs sm_90.
// task: row_sum   target: cuda
// accepted: yes
// launch rows: grid(N*4) block(128) cluster(4)
#include <cooperative_groups.h>
#include <cuda_fp16.h>
extern "C" __global__ void rows(scalar_t* out, const scalar_t* x, int64_t N, int64_t D, void*) {
    __shared__ float parts[4];
    auto cluster = cooperative_groups::this_cluster();
    int64_t n = blockIdx.x / 4;
    if (threadIdx.x < 4) parts[threadIdx.x] = 0;
    __syncthreads();
    float sum = 0;
    for (int64_t d = cluster.block_rank() * 128 + threadIdx.x; d < D; d += 512) sum += float(x[n * D + d]);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    cluster.sync();
    if (cluster.block_rank() == 0 && threadIdx.x == 0) {
        float total = 0;
        for (int rank = 0; rank < 4; ++rank)
            for (int part = 0; part < 4; ++part) total += cluster.map_shared_rank(parts, rank)[part];
        out[n] = scalar_t(total);
    }
    cluster.sync();
}
