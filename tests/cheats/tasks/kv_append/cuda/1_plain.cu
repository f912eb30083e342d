// 1: one launch writes the keys, the next scores, a warp a key.
// launch append: grid(B) block(64)
// launch score: grid(B*L) block(32)
#include <cuda_fp16.h>
extern "C" __global__ void append(scalar_t* scores, scalar_t* cache, const scalar_t* q, const scalar_t* k_new,
                                  const int32_t* position, int64_t B, int64_t L, int64_t D, void*) {
    int64_t b = blockIdx.x;
    for (int64_t d = threadIdx.x; d < D; d += 64) cache[(b * L + position[b]) * D + d] = k_new[b * D + d];
}
extern "C" __global__ void score(scalar_t* scores, scalar_t* cache, const scalar_t* q, const scalar_t* k_new,
                                 const int32_t* position, int64_t B, int64_t L, int64_t D, void*) {
    int64_t b = blockIdx.x / L;
    float dot = 0;
    for (int64_t d = threadIdx.x; d < D; d += 32) dot += float(cache[blockIdx.x * D + d]) * float(q[b * D + d]);
    for (int step = 16; step; step /= 2) dot += __shfl_xor_sync(~0u, dot, step);
    if (threadIdx.x == 0) scores[blockIdx.x] = scalar_t(dot);
}
