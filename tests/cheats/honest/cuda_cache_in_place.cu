// honest: writes the in-out in place, then reads it in a second launch
// task: kv_append   target: cuda
// accepted: yes
// launch append: grid(B) block(32)
// launch score: grid(B, cdiv(L, 128)) block(128)
#include <cuda_fp16.h>
extern "C" __global__ void append(scalar_t* scores, scalar_t* cache, const scalar_t* q, const scalar_t* k_new,
                                  const int32_t* position, int64_t B, int64_t L, int64_t D, void*) {
    int64_t b = blockIdx.x;
    for (int64_t d = threadIdx.x; d < D; d += 32) cache[(b * L + position[b]) * D + d] = k_new[b * D + d];
}
extern "C" __global__ void score(scalar_t* scores, scalar_t* cache, const scalar_t* q, const scalar_t* k_new,
                                 const int32_t* position, int64_t B, int64_t L, int64_t D, void*) {
    int64_t b = blockIdx.x, l = blockIdx.y * 128ll + threadIdx.x;
    if (l >= L) return;
    float dot = 0;
    for (int64_t d = 0; d < D; ++d) dot += float(cache[(b * L + l) * D + d]) * float(q[b * D + d]);
    scores[b * L + l] = scalar_t(dot);
}
