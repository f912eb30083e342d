// 2: attention on tensor cores (mma.sync, in the manner of FlashAttention-2) writes the joined heads straight into out,
// in the task's dtype as the eager pair does; the second launch normalises out in place, ROW_THREADS to a row.
// Needs float16 or bfloat16 and D in {32, 64, 128}; any S and H. Faster than 1 from a few tiles of keys on; the
// intermediate is half as wide and may still be in the L2 cache. On Hopper 3 can win.
//
// launch attention: grid(B*H*cdiv(S, TILE_M)) block(32*WARPS) smem((TILE_M + 2*STAGES*TILE_N)*(D + 8)*2)
// launch normalise: grid(cdiv(B*S, 128//ROW_THREADS)) block(128)
// static: H D causal
// tune-if: (TILE_M + 2*STAGES*TILE_N)*(D + 8)*2 <= smem_optin
// tune-if: TILE_M == 16*WARPS or TILE_M == 32*WARPS
// tune-if: TILE_M//WARPS*(D + TILE_N) <= 32*192
// tune-if: not (QUERY_IN_REGISTERS and TILE_M == 32*WARPS and D + TILE_N > 128)
#if DTYPE_BFLOAT16
#include <cuda_bf16.h>
#else
#include <cuda_fp16.h>
#endif

#ifndef WARPS
#define WARPS 4               // tune: 4 8
#endif
#ifndef TILE_M
#define TILE_M 64             // tune: 64 128 256
#endif
#ifndef TILE_N
#define TILE_N 64             // tune: 32 64 128
#endif
#ifndef STAGES
#define STAGES 1              // tune: 1 2 3
#endif
#ifndef QUERY_IN_REGISTERS
#define QUERY_IN_REGISTERS 1  // tune: 0 1
#endif

#ifndef ROW_THREADS
#define ROW_THREADS 128       // tune: 32 64 128
#endif

#if DTYPE_FLOAT32
#error "2_tensor_core serves float16 and bfloat16"
#endif

namespace {

constexpr int D_ = STATIC_D;
constexpr int THREADS = 32 * WARPS;
constexpr int STRIDE = D_ + 8;                // 16 bytes of padding: the 8 rows of one ldmatrix fall in different banks
constexpr int BLOCKS = TILE_M / (16 * WARPS);  // 16-row blocks per warp; two of them use each K and V fragment twice
constexpr int CHUNKS = D_ / 8;                // 16-byte pieces of a row
static_assert(D_ == 32 || D_ == 64 || D_ == 128, "D must be 32, 64 or 128");
static_assert(BLOCKS * 16 * WARPS == TILE_M && TILE_N % 16 == 0, "a warp takes whole 16-row blocks");

__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
__device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

__device__ __forceinline__ void ldmatrix(uint32_t (&x)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(from) : "memory");
}

__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&x)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(from) : "memory");
}

#if DTYPE_BFLOAT16
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#endif

// [low high][16x16] += a[16x16] b[16x16]: two instructions in one asm, which is half the work for the compiler.
__device__ __forceinline__ void mma(
    float (&low)[4], float (&high)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    asm volatile(MMA "{%0, %1, %2, %3}, {%8, %9, %10, %11}, {%12, %13}, {%0, %1, %2, %3};\n"
                 MMA "{%4, %5, %6, %7}, {%8, %9, %10, %11}, {%14, %15}, {%4, %5, %6, %7};"
                 : "+f"(low[0]), "+f"(low[1]), "+f"(low[2]), "+f"(low[3]),
                   "+f"(high[0]), "+f"(high[1]), "+f"(high[2]), "+f"(high[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]));
}

__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ uint32_t pack(float low, float high) {
    uint32_t pair;
#if DTYPE_BFLOAT16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
    return pair;
}

__device__ __forceinline__ void store_shared(uint32_t to, uint32_t x) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(x) : "memory");
}

// Rows first .. first+ROWS-1 of one head to padded shared memory; rows past the end become zeros.
template <int ROWS>
__device__ __forceinline__ void load(uint32_t to, const scalar_t* head, int first, int length) {
    constexpr int STEP = THREADS / CHUNKS;
    const int column = int(threadIdx.x) % CHUNKS * 8;
#pragma unroll 2
    for (int base = 0; base < ROWS; base += STEP) {
        const int r = base + int(threadIdx.x) / CHUNKS;
        if (ROWS % STEP == 0 || r < ROWS) {
            const bool inside = first + r < length;
            copy_async(to + (r * STRIDE + column) * 2, head + (inside ? first + r : 0) * D_ + column, inside);
        }
    }
}

// The sum over ROW_THREADS neighbours, in each of them. `part` is used once per call site.
__device__ __forceinline__ float row_sum(float x, float* part) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
#if ROW_THREADS > 32
    constexpr int ROW_WARPS = ROW_THREADS / 32;
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) part[warp] = x;
    __syncthreads();
    x = 0.f;
    for (int i = 0; i < ROW_WARPS; i++) x += part[warp / ROW_WARPS * ROW_WARPS + i];
#endif
    return x;
}

constexpr int COLUMNS = STATIC_H * STATIC_D;
constexpr int PACKS = (COLUMNS / 8 + ROW_THREADS - 1) / ROW_THREADS;  // 16-byte pieces of a row per thread

struct alignas(16) Pack {
    scalar_t x[8];
};

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) attention(
    scalar_t* out, const scalar_t* q, const scalar_t* k, const scalar_t* v,
    const scalar_t* weight, const scalar_t* bias,
    int64_t B, int64_t H, int64_t S, int64_t D, float scale, int causal, float eps, void* workspace) {
    extern __shared__ uint4 shared[];
    scalar_t* q_tile = reinterpret_cast<scalar_t*>(shared);
    const uint32_t q_at = shared_address(shared);
    const uint32_t k_at = q_at + TILE_M * STRIDE * 2;
    const uint32_t v_at = k_at + STAGES * TILE_N * STRIDE * 2;
    constexpr uint32_t STAGE = TILE_N * STRIDE * 2;
    const float minus_infinity = __int_as_float(0xff800000);

    const int length = int(S), row_tiles = (length + TILE_M - 1) / TILE_M;
    // Causal: the row tiles with most keys of all heads first, so that short blocks fill the tail. Otherwise neighbours
    // in time read the same head, which the L2 cache then serves.
    const int heads = int(B * H);
    const int64_t head = STATIC_CAUSAL ? blockIdx.x % heads : blockIdx.x / row_tiles;
    const int row_tile = STATIC_CAUSAL ? row_tiles - 1 - int(blockIdx.x) / heads : int(blockIdx.x) % row_tiles;
    const int first_row = row_tile * TILE_M;
    const int keys = STATIC_CAUSAL ? min(length, first_row + TILE_M) : length;
    const int tiles = (keys + TILE_N - 1) / TILE_N;
    const scalar_t* k_head = k + head * S * D_;
    const scalar_t* v_head = v + head * S * D_;

    const int lane = threadIdx.x % 32;
    const int warp_row = int(threadIdx.x) / 32 * (16 * BLOCKS);  // within the tile
    // Where this thread's row of each ldmatrix lies. A (queries) and transposed B (values): rows 0-15, then the next 8
    // columns. B (keys): rows 0-7 at both column halves, then rows 8-15.
    const uint32_t q_lane = q_at + ((warp_row + lane % 16) * STRIDE + lane / 16 * 8) * 2;
    const uint32_t k_lane = k_at + ((lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8) * 2;
    const uint32_t v_lane = v_at + (lane % 16 * STRIDE + lane / 16 * 8) * 2;

    // The pipeline is a sequence K0 V0 K1 V1 ..., one commit each, 2*STAGES - 1 ahead of the arithmetic.
    load<TILE_M>(q_at, q + head * S * D_, first_row, length);
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) {
        if (stage < tiles) load<TILE_N>(k_at + stage * STAGE, k_head, stage * TILE_N, length);
        commit();
        if (stage + 1 < STAGES) {
            if (stage < tiles) load<TILE_N>(v_at + stage * STAGE, v_head, stage * TILE_N, length);
            commit();
        }
    }
    wait<2 * STAGES - 2>();
    __syncthreads();

    // exp(scale*s - max) = exp2(factor*s - max'): the factor must be positive for the maximum to be one, so a negative
    // scale changes the sign of Q, and 0 becomes tiny, for -inf * 0 is NaN.
    const float factor = fmaxf(fabsf(scale) * 1.4426950408889634f, 1e-30f);
    if (scale < 0.f) {
#pragma unroll 1
        for (int i = lane; i < 16 * BLOCKS * CHUNKS * 4; i += 32) {
            const int r = warp_row + i / (CHUNKS * 4), column = i % (CHUNKS * 4) * 2;
            *reinterpret_cast<uint32_t*>(q_tile + r * STRIDE + column) ^= 0x80008000u;
        }
        __syncwarp();
    }

    float acc[BLOCKS][D_ / 8][4], top[BLOCKS][2], sum[BLOCKS][2];
#pragma unroll
    for (int m = 0; m < BLOCKS; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) top[m][half] = minus_infinity, sum[m][half] = 0.f;
#pragma unroll
        for (int n = 0; n < D_ / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[m][n][i] = 0.f;
    }
#if QUERY_IN_REGISTERS
    uint32_t query[D_ / 16][BLOCKS][4];
#pragma unroll
    for (int d = 0; d < D_ / 16; d++)
#pragma unroll
        for (int m = 0; m < BLOCKS; m++) ldmatrix(query[d][m], q_lane + (m * 16 * STRIDE + d * 16) * 2);
#endif

    int stage = 0;
    for (int tile = 0; tile < tiles; tile++) {
        const int first_key = tile * TILE_N;
        // The barrier makes this tile's K visible and says that all warps are done with the V before it.
        wait<2 * STAGES - 2>();
        __syncthreads();
        const int ahead = tile + STAGES - 1;
        const int slot = stage == 0 ? STAGES - 1 : stage - 1;
        if (ahead < tiles) load<TILE_N>(v_at + slot * STAGE, v_head, ahead * TILE_N, length);
        commit();

        // A warp whose rows all lie above this tile only keeps the barriers company.
        const bool useful = !STATIC_CAUSAL || first_key < first_row + warp_row + 16 * BLOCKS;
        uint32_t prob[BLOCKS][TILE_N / 8][2];
        if (useful) {
            float score[BLOCKS][TILE_N / 8][4];
#pragma unroll
            for (int m = 0; m < BLOCKS; m++)
#pragma unroll
                for (int n = 0; n < TILE_N / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) score[m][n][i] = 0.f;
#pragma unroll
            for (int d = 0; d < D_ / 16; d++) {
#if !QUERY_IN_REGISTERS
                uint32_t query[1][BLOCKS][4];
#pragma unroll
                for (int m = 0; m < BLOCKS; m++) ldmatrix(query[0][m], q_lane + (m * 16 * STRIDE + d * 16) * 2);
#endif
#pragma unroll
                for (int n = 0; n < TILE_N / 16; n++) {
                    uint32_t key[4];
                    ldmatrix(key, k_lane + stage * STAGE + (n * 16 * STRIDE + d * 16) * 2);
#pragma unroll
                    for (int m = 0; m < BLOCKS; m++)
                        mma(score[m][2 * n], score[m][2 * n + 1], query[QUERY_IN_REGISTERS ? d : 0][m], key);
                }
            }

            // A thread holds columns 2*(lane%4) and the next, of rows lane/4 (i = 0, 1) and lane/4 + 8 (i = 2, 3).
            if (first_key + TILE_N > length || (STATIC_CAUSAL && first_key + TILE_N > first_row + warp_row + 1)) {
#pragma unroll
                for (int m = 0; m < BLOCKS; m++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const int row = first_row + warp_row + m * 16 + lane / 4 + half * 8;
                        const int visible = (STATIC_CAUSAL ? min(length, row + 1) : length) - first_key - lane % 4 * 2;
#pragma unroll
                        for (int n = 0; n < TILE_N / 8; n++)
#pragma unroll
                            for (int i = 0; i < 2; i++)
                                if (n * 8 + i >= visible) score[m][n][2 * half + i] = minus_infinity;
                    }
            }

#pragma unroll
            for (int m = 0; m < BLOCKS; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float peak = fmaxf(score[m][0][2 * half], score[m][0][2 * half + 1]);
#pragma unroll
                    for (int n = 1; n < TILE_N / 8; n++)
                        peak = fmaxf(peak, fmaxf(score[m][n][2 * half], score[m][n][2 * half + 1]));
                    peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
                    peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
                    // top is kept as the rounded product, so that rounding is the same in every tile's exponent.
                    peak = fmaxf(top[m][half], peak * factor);
                    const float zero = peak == minus_infinity ? 0.f : peak;  // nothing seen yet: avoid inf - inf
                    const float shrink = fast_exp2(top[m][half] - zero);
                    top[m][half] = peak;
                    float part = 0.f;
#pragma unroll
                    for (int n = 0; n < TILE_N / 8; n++) {
                        const float low = fast_exp2(fmaf(score[m][n][2 * half], factor, -zero));
                        const float high = fast_exp2(fmaf(score[m][n][2 * half + 1], factor, -zero));
                        part += low + high;
                        prob[m][n][half] = pack(low, high);
                    }
                    sum[m][half] = fmaf(sum[m][half], shrink, part);
#pragma unroll
                    for (int n = 0; n < D_ / 8; n++) {
                        acc[m][n][2 * half] *= shrink;
                        acc[m][n][2 * half + 1] *= shrink;
                    }
                }
        }

        // The same for V: visible now, and all warps are done with this tile's K.
        wait<2 * STAGES - 2>();
        __syncthreads();
        if (tile + STAGES < tiles) load<TILE_N>(k_at + stage * STAGE, k_head, (tile + STAGES) * TILE_N, length);
        commit();

        if (useful) {
#pragma unroll
            for (int n = 0; n < TILE_N / 16; n++) {
                // The accumulator's layout of two 8-column blocks is the A operand's layout of one 16-column block.
                uint32_t p[BLOCKS][4];
#pragma unroll
                for (int m = 0; m < BLOCKS; m++) {
                    p[m][0] = prob[m][2 * n][0], p[m][1] = prob[m][2 * n][1];
                    p[m][2] = prob[m][2 * n + 1][0], p[m][3] = prob[m][2 * n + 1][1];
                }
#pragma unroll
                for (int d = 0; d < D_ / 16; d++) {
                    uint32_t value[4];
                    ldmatrix_transposed(value, v_lane + stage * STAGE + (n * 16 * STRIDE + d * 16) * 2);
#pragma unroll
                    for (int m = 0; m < BLOCKS; m++) mma(acc[m][2 * d], acc[m][2 * d + 1], p[m], value);
                }
            }
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }

    // Through this warp's own rows of the Q tile, which nobody else reads, so that stores are whole 16-byte pieces.
#pragma unroll
    for (int m = 0; m < BLOCKS; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[m][half];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            const float inverse = 1.f / total;
            const uint32_t to = q_at + ((warp_row + m * 16 + lane / 4 + half * 8) * STRIDE + lane % 4 * 2) * 2;
#pragma unroll
            for (int n = 0; n < D_ / 8; n++)
                store_shared(to + n * 16, pack(acc[m][n][2 * half] * inverse, acc[m][n][2 * half + 1] * inverse));
        }
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < 16 * BLOCKS * CHUNKS; i += 32) {
        const int r = warp_row + i / CHUNKS, column = i % CHUNKS * 8;
        if (first_row + r < length)
            *reinterpret_cast<uint4*>(out + ((head / STATIC_H * S + first_row + r) * STATIC_H + head % STATIC_H) * D_ + column) =
                *reinterpret_cast<const uint4*>(q_tile + r * STRIDE + column);
    }
}

extern "C" __global__ void __launch_bounds__(128) normalise(
    scalar_t* out, const scalar_t* q, const scalar_t* k, const scalar_t* v,
    const scalar_t* weight, const scalar_t* bias,
    int64_t B, int64_t H, int64_t S, int64_t D, float scale, int causal, float eps, void* workspace) {
    __shared__ float part[2][4];
    const int lane = threadIdx.x % ROW_THREADS;
    const int64_t row = int64_t(blockIdx.x) * (128 / ROW_THREADS) + threadIdx.x / ROW_THREADS;
    const bool active = row < B * S;  // the others keep the barriers company
    Pack* packs = reinterpret_cast<Pack*>(out + (active ? row : 0) * COLUMNS);

    float x[PACKS][8];  // converted once
    float sum = 0.f;
#pragma unroll
    for (int p = 0; p < PACKS; p++)
        if (p * ROW_THREADS + lane < COLUMNS / 8) {
            const Pack pack = packs[p * ROW_THREADS + lane];
#pragma unroll
            for (int i = 0; i < 8; i++) sum += x[p][i] = float(pack.x[i]);
        }
    const float mean = row_sum(sum, part[0]) * (1.f / COLUMNS);
    // From registers again: E[x^2] - E[x]^2 cancels where the mean is large.
    float squares = 0.f;
#pragma unroll
    for (int p = 0; p < PACKS; p++)
        if (p * ROW_THREADS + lane < COLUMNS / 8)
#pragma unroll
            for (int i = 0; i < 8; i++) squares = fmaf(x[p][i] - mean, x[p][i] - mean, squares);
    const float inverse = rsqrtf(row_sum(squares, part[1]) * (1.f / COLUMNS) + eps);

#pragma unroll
    for (int p = 0; p < PACKS; p++)
        if (active && p * ROW_THREADS + lane < COLUMNS / 8) {
            const Pack w = reinterpret_cast<const Pack*>(weight)[p * ROW_THREADS + lane];
            const Pack b = reinterpret_cast<const Pack*>(bias)[p * ROW_THREADS + lane];
            Pack pack;
#pragma unroll
            for (int i = 0; i < 8; i++)
                pack.x[i] = scalar_t(fmaf((x[p][i] - mean) * inverse, float(w.x[i]), float(b.x[i])));
            packs[p * ROW_THREADS + lane] = pack;
        }
}
