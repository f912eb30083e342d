// 1: online softmax in fp32 FMA, K and V tiles in shared memory; LANES threads share ROWS query rows and split D.
// Needs D % (8*LANES) == 0 and D <= 128; any S, any dtype. No tensor cores: the readable baseline of the ladder.
//
// launch attention: grid(B*H*cdiv(S, THREADS//LANES*ROWS)) block(THREADS) smem(2*TILE_N*D*itemsize)
// static: D causal
// tune-if: D % (8*LANES) == 0
// tune-if: 2*TILE_N*D*itemsize <= smem_optin
// tune-if: ROWS*D <= 32*LANES*2
#if DTYPE_BFLOAT16
#include <cuda_bf16.h>
#else
#include <cuda_fp16.h>
#endif

#ifndef THREADS
#define THREADS 128  // tune: 64 128 256
#endif
#ifndef LANES
#define LANES 8      // tune: 4 8
#endif
#ifndef ROWS
#define ROWS 2       // tune: 1 2 4
#endif
#ifndef TILE_N
#define TILE_N 32    // tune: 8 16 32 64
#endif

namespace {

constexpr int D_ = STATIC_D;
constexpr int WIDTH = 16 / sizeof(scalar_t);           // elements of one 16-byte access
constexpr int PARTS = D_ / (LANES * WIDTH);            // such accesses per thread and row of K or V
constexpr int TILE_M = THREADS / LANES * ROWS;
constexpr int KEYS = 4;                                // keys between two updates of the running maximum
static_assert(D_ % (LANES * WIDTH) == 0, "D must be a multiple of LANES * 16 bytes");
static_assert(TILE_N % KEYS == 0, "TILE_N must be a multiple of 4");

struct alignas(16) Pack {
    scalar_t x[WIDTH];
};

__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) attention(
    scalar_t* out, const scalar_t* q, const scalar_t* k, const scalar_t* v,
    int64_t B, int64_t H, int64_t S, int64_t D, float scale, int causal, void* workspace) {
    extern __shared__ uint4 shared[];
    Pack* k_tile = reinterpret_cast<Pack*>(shared);
    Pack* v_tile = k_tile + TILE_N * (D_ / WIDTH);
    const float minus_infinity = __int_as_float(0xff800000);

    const int length = int(S), tiles = (length + TILE_M - 1) / TILE_M;
    const int64_t head = blockIdx.x / tiles;
    // Causal rows at the end of the sequence see most keys: start with them, so that the short blocks fill the tail.
    const int tile = STATIC_CAUSAL ? tiles - 1 - int(blockIdx.x % tiles) : int(blockIdx.x % tiles);
    const int lane = threadIdx.x % LANES;
    const int row = tile * TILE_M + int(threadIdx.x) / LANES * ROWS;
    const int keys = STATIC_CAUSAL ? min(length, (tile + 1) * TILE_M) : length;
    const Pack* k_head = reinterpret_cast<const Pack*>(k + head * S * D_);
    const Pack* v_head = reinterpret_cast<const Pack*>(v + head * S * D_);
    const Pack* q_head = reinterpret_cast<const Pack*>(q + head * S * D_);

    float query[ROWS][PARTS * WIDTH], acc[ROWS][PARTS * WIDTH], top[ROWS], sum[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        top[r] = minus_infinity;
        sum[r] = 0.f;
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            // Rows past the end repeat the last one and are not stored.
            const Pack pack = q_head[min(row + r, length - 1) * (D_ / WIDTH) + p * LANES + lane];
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                query[r][p * WIDTH + i] = float(pack.x[i]) * (scale * 1.4426950408889634f);  // log2(e): softmax in exp2
                acc[r][p * WIDTH + i] = 0.f;
            }
        }
    }

    for (int first = 0; first < keys; first += TILE_N) {
        __syncthreads();
#pragma unroll 2
        for (int i = threadIdx.x; i < TILE_N * (D_ / WIDTH); i += THREADS) {
            // Zeros past the end: a probability of 0 times whatever lies there could be NaN.
            const bool inside = first + i / (D_ / WIDTH) < length;
            reinterpret_cast<uint4*>(k_tile)[i] =
                inside ? reinterpret_cast<const uint4*>(k_head)[first * (D_ / WIDTH) + i] : make_uint4(0, 0, 0, 0);
            reinterpret_cast<uint4*>(v_tile)[i] =
                inside ? reinterpret_cast<const uint4*>(v_head)[first * (D_ / WIDTH) + i] : make_uint4(0, 0, 0, 0);
        }
        __syncthreads();

#pragma unroll 1
        for (int base = 0; base < TILE_N && first + base < keys; base += KEYS) {
            float score[ROWS][KEYS];
#pragma unroll
            for (int j = 0; j < KEYS; j++) {
#pragma unroll
                for (int r = 0; r < ROWS; r++) score[r][j] = 0.f;
#pragma unroll
                for (int p = 0; p < PARTS; p++) {
                    const Pack pack = k_tile[(base + j) * (D_ / WIDTH) + p * LANES + lane];
#pragma unroll
                    for (int i = 0; i < WIDTH; i++) {
                        const float x = float(pack.x[i]);
#pragma unroll
                        for (int r = 0; r < ROWS; r++) score[r][j] = fmaf(query[r][p * WIDTH + i], x, score[r][j]);
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float peak = top[r];
#pragma unroll
                for (int j = 0; j < KEYS; j++) {
#pragma unroll
                    for (int step = 1; step < LANES; step *= 2)
                        score[r][j] += __shfl_xor_sync(0xffffffffu, score[r][j], step);
                    const int key = first + base + j;
                    if (key >= length || (STATIC_CAUSAL && key > row + r)) score[r][j] = minus_infinity;
                    peak = fmaxf(peak, score[r][j]);
                }
                const float zero = peak == minus_infinity ? 0.f : peak;  // nothing seen yet: avoid inf - inf
                const float shrink = fast_exp2(top[r] - zero);
                top[r] = peak;
                sum[r] *= shrink;
#pragma unroll
                for (int i = 0; i < PARTS * WIDTH; i++) acc[r][i] *= shrink;
#pragma unroll
                for (int j = 0; j < KEYS; j++) {
                    score[r][j] = fast_exp2(score[r][j] - zero);
                    sum[r] += score[r][j];
                }
            }
#pragma unroll
            for (int j = 0; j < KEYS; j++) {
#pragma unroll
                for (int p = 0; p < PARTS; p++) {
                    const Pack pack = v_tile[(base + j) * (D_ / WIDTH) + p * LANES + lane];
#pragma unroll
                    for (int i = 0; i < WIDTH; i++) {
                        const float x = float(pack.x[i]);
#pragma unroll
                        for (int r = 0; r < ROWS; r++)
                            acc[r][p * WIDTH + i] = fmaf(score[r][j], x, acc[r][p * WIDTH + i]);
                    }
                }
            }
        }
    }

#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (row + r >= length) break;
        const float inverse = 1.f / sum[r];
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            Pack pack;
#pragma unroll
            for (int i = 0; i < WIDTH; i++) pack.x[i] = scalar_t(acc[r][p * WIDTH + i] * inverse);
            reinterpret_cast<Pack*>(out + (head * S + row + r) * D_)[p * LANES + lane] = pack;
        }
    }
}
