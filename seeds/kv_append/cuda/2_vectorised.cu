// 2: 16 bytes per load, UNROLL of each tensor in flight before the first is stored; the block finds its place once.
// Any shape: where a row is no multiple of 16 bytes, elements go one by one. Meant to win over 1 on long prompts; with
// one new row both are a launch and little else.
//
// launch kv_append: grid(cdiv(S*D*itemsize, 16*UNROLL*THREADS), B*Hkv) block(THREADS)
// static: D
#if DTYPE_BFLOAT16
#include <cuda_bf16.h>
#else
#include <cuda_fp16.h>
#endif

#ifndef THREADS
#define THREADS 128   // tune: 32 64 128 256
#endif
#ifndef UNROLL
#define UNROLL 4      // tune: 1 2 4 8
#endif

static constexpr int VECTOR = 16 / sizeof(scalar_t);
static constexpr int PER_BLOCK = THREADS * UNROLL * VECTOR;   // elements

extern "C" __global__ void __launch_bounds__(THREADS)
kv_append(scalar_t* k_cache, scalar_t* v_cache, const scalar_t* k_new, const scalar_t* v_new, const int32_t* input_pos,
          int64_t B, int64_t Hkv, int64_t S, int64_t L, int64_t D, void* workspace) {
    const int64_t head = blockIdx.y, begin = int64_t(blockIdx.x) * PER_BLOCK, end = min(S * D, begin + PER_BLOCK);
    const int64_t from = head * S * D, to = (head * L + input_pos[head / Hkv]) * D;

    // Rows of whole vectors start at a multiple of 16 bytes, wherever in the cache that is.
    if (STATIC_D % VECTOR == 0) {
        uint4 key[UNROLL], value[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int64_t i = begin + (u * THREADS + threadIdx.x) * VECTOR;
            if (i < end) {
                key[u] = __ldcs(reinterpret_cast<const uint4*>(k_new + from + i));
                value[u] = __ldcs(reinterpret_cast<const uint4*>(v_new + from + i));
            }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int64_t i = begin + (u * THREADS + threadIdx.x) * VECTOR;
            if (i < end) {
                *reinterpret_cast<uint4*>(k_cache + to + i) = key[u];
                *reinterpret_cast<uint4*>(v_cache + to + i) = value[u];
            }
        }
    } else {
        for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) {
            k_cache[to + i] = k_new[from + i];
            v_cache[to + i] = v_new[from + i];
        }
    }
}
