// 1: one block per sequence and query head; online softmax over tiles of keys and values in shared memory.
// Right for any L, D and H % Hkv == 0. With B*H blocks it leaves a GPU idle unless the batch is large, and query
// heads that share a key/value head each read it again.
//
// launch decode_attention: grid(B*H) block(THREADS) smem(TILE*(2*D + 2)*itemsize)
// static: D
// tune-if: TILE <= THREADS
#if DTYPE_BFLOAT16
#include <cuda_bf16.h>
#else
#include <cuda_fp16.h>
#endif

#ifndef THREADS
#define THREADS 128   // tune: 64 128 256
#endif
#ifndef TILE
#define TILE 64       // tune: 32 64 128
#endif

static constexpr int WIDTH = STATIC_D;
static constexpr int PITCH = WIDTH + 2;   // of a key in shared memory: one thread per key, each in another bank
static constexpr int OWN = (WIDTH + THREADS - 1) / THREADS;   // output elements of a thread
static constexpr float LOWEST = -3.0e38f;   // finite, so that its difference to itself is 0

extern "C" __global__ void __launch_bounds__(THREADS)
decode_attention(scalar_t* out, const scalar_t* q, const scalar_t* k_cache, const scalar_t* v_cache,
                 const int32_t* input_pos, int64_t B, int64_t H, int64_t Hkv, int64_t L, int64_t D, float scale,
                 void* workspace) {
    extern __shared__ __align__(16) unsigned char dynamic_smem[];
    scalar_t* keys = reinterpret_cast<scalar_t*>(dynamic_smem);
    scalar_t* values = keys + TILE * PITCH;
    __shared__ float query[WIDTH], score[TILE], weight[TILE];

    const int heads = int(H), group = heads / int(Hkv);
    const int b = blockIdx.x / heads, head = blockIdx.x % heads, lane = threadIdx.x % 32;
    const int64_t kv_row = int64_t(b) * Hkv + head / group;
    const int position = input_pos[b];
    const scalar_t* k_rows = k_cache + kv_row * L * WIDTH;
    const scalar_t* v_rows = v_cache + kv_row * L * WIDTH;

    for (int d = threadIdx.x; d < WIDTH; d += THREADS) query[d] = float(q[int64_t(blockIdx.x) * WIDTH + d]) * scale;

    float highest = LOWEST, total = 0.0f, sum[OWN] = {};
    for (int first = 0; first <= position; first += TILE) {
        const int count = min(TILE, position + 1 - first);
#pragma unroll 2
        for (int i = threadIdx.x; i < count * WIDTH; i += THREADS) {
            const int j = i / WIDTH, d = i % WIDTH;
            keys[j * PITCH + d] = k_rows[int64_t(first + j) * WIDTH + d];
            values[j * WIDTH + d] = v_rows[int64_t(first + j) * WIDTH + d];
        }
        __syncthreads();

        if (threadIdx.x < TILE) {
            float dot = 0.0f;
            if (threadIdx.x < count)
#pragma unroll 8
                for (int d = 0; d < WIDTH; ++d) dot += query[d] * float(keys[threadIdx.x * PITCH + d]);
            score[threadIdx.x] = threadIdx.x < count ? dot : LOWEST;
        }
        __syncthreads();

        // Every warp finds the same maximum for itself.
        float tile_highest = highest;
        for (int j = lane; j < TILE; j += 32) tile_highest = fmaxf(tile_highest, score[j]);
        for (int offset = 16; offset > 0; offset /= 2)
            tile_highest = fmaxf(tile_highest, __shfl_xor_sync(~0u, tile_highest, offset));
        if (threadIdx.x < TILE)
            weight[threadIdx.x] = threadIdx.x < count ? __expf(score[threadIdx.x] - tile_highest) : 0.0f;
        __syncthreads();

        const float shrink = __expf(highest - tile_highest);
        highest = tile_highest;
        total *= shrink;
        for (int j = 0; j < count; ++j) total += weight[j];
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int d = threadIdx.x + i * THREADS;
            sum[i] *= shrink;
            if (d < WIDTH)
#pragma unroll 4
                for (int j = 0; j < count; ++j) sum[i] += weight[j] * float(values[j * WIDTH + d]);
        }
        __syncthreads();   // before the next tile overwrites this one
    }
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int d = threadIdx.x + i * THREADS;
        if (d < WIDTH) out[int64_t(blockIdx.x) * WIDTH + d] = scalar_t(sum[i] / total);
    }
}
