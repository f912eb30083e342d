// honest: a tile of the input fetched by TMA into shared memory, waited for on an mbarrier. Needs sm_90.
// task: row_sum   target: cuda
// accepted: yes
// launch rows: grid(N) block(128) when(D % 256 == 0)
// launch plain: grid(N) block(32) when(D % 256 != 0)
// tensormap x_map: x view(N*D) box(256)
#include <cuda_fp16.h>
__device__ __forceinline__ unsigned shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }
extern "C" __global__ void rows(scalar_t* out, const scalar_t* x, int64_t N, int64_t D, void*,
                                const __grid_constant__ CUtensorMap x_map) {
    alignas(128) __shared__ scalar_t tile[256];
    __shared__ uint64_t barrier;
    __shared__ float parts[4];
    unsigned bar = shared_address(&barrier);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(bar));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    float sum = 0;
    for (int64_t from = 0, phase = 0; from < D; from += 256, phase ^= 1) {
        if (threadIdx.x == 0) {
            asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(bar), "r"(int(sizeof tile)) : "memory");
            asm volatile(
                "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2}], [%3];" ::"r"(
                    shared_address(tile)),
                "l"(&x_map), "r"(int(blockIdx.x * D + from)), "r"(bar)
                : "memory");
        }
        unsigned done = 0;
        while (!done)
            asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                         : "=r"(done)
                         : "r"(bar), "r"(int(phase))
                         : "memory");
        sum += float(tile[threadIdx.x]) + float(tile[threadIdx.x + 128]);
        __syncthreads();
    }
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) out[blockIdx.x] = scalar_t(parts[0] + parts[1] + parts[2] + parts[3]);
}
extern "C" __global__ void plain(scalar_t* out, const scalar_t* x, int64_t N, int64_t D, void*,
                                 const __grid_constant__ CUtensorMap x_map) {
    float sum = 0;
    for (int64_t d = threadIdx.x; d < D; d += 32) sum += float(x[blockIdx.x * D + d]);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x == 0) out[blockIdx.x] = scalar_t(sum);
}
