// 1: one element of both tensors per thread, the plainest kernel there is.
// Right for any shape. A warp moves 64 bytes per load, and every thread divides to find its place.
//
// launch kv_append: grid(cdiv(S*D, THREADS), B*Hkv) block(THREADS)
#if DTYPE_BFLOAT16
#include <cuda_bf16.h>
#else
#include <cuda_fp16.h>
#endif

#ifndef THREADS
#define THREADS 128   // tune: 64 128 256
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
kv_append(scalar_t* k_cache, scalar_t* v_cache, const scalar_t* k_new, const scalar_t* v_new, const int32_t* input_pos,
          int64_t B, int64_t Hkv, int64_t S, int64_t L, int64_t D, void* workspace) {
    const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x, head = blockIdx.y;
    if (i >= S * D) return;
    // The new rows of a sequence and head lie side by side in both places.
    const int64_t from = head * S * D + i, to = (head * L + input_pos[head / Hkv]) * D + i;
    k_cache[to] = k_new[from];
    v_cache[to] = v_new[from];
}
