// 2: tensor cores. Many tokens: mma.sync on tiles that cp.async brings in STAGES deep and ldmatrix reads through a
// swizzle; gate and up share a block, so that silu(g) * u happens in registers. Where `down` has too few tiles for the
// GPU, its sum is split over blocks and a third launch adds the parts up.
// Few tokens (up to 16): reading the weights once is all that counts, so they go straight from memory to registers,
// 16 bytes per load, and enter mma.sync as the left operand: 16 outputs by 8 tokens wastes little where 16 tokens
// by 8 outputs would waste much.
//
// Needs K % 8 == 0 and N % 8 == 0 and 16-bit elements; any M. Meant to win over 1 everywhere. On Hopper mma.sync
// cannot reach the peak that wgmma has, so many tokens still lose to a good library there.
//
// Scratch memory: the number of parts (256 bytes), h [M, N] as scalar_t, then the parts [parts, M, K] as float.
//
// launch gate_up_few: grid(cdiv(N, 16)) block(32*FEW_WARPS) when(M <= 16)
// launch down_few:    grid(cdiv(K, 32)) block(32*FEW_WARPS) when(M <= 16)
// launch gate_up: grid(cdiv(M, BM), cdiv(2*N, BN)) block(32*WARPS_M*WARPS_N) smem(STAGES*(BM + BN)*BK*itemsize) when(M > 16)
// launch down: grid(cdiv(M, BM), cdiv(K, BN), max(1, min(8, 2*sm_count//(cdiv(M, BM)*cdiv(K, BN))))) block(32*WARPS_M*WARPS_N) smem(STAGES*(BM + BN)*BK*itemsize) when(M > 16)
// launch add_parts: grid(cdiv(M*K, 1024)) block(256) when(M > 16 and 2*sm_count//(cdiv(M, BM)*cdiv(K, BN)) > 1)
// workspace: 256 + M*N*itemsize + (M > 16)*8*M*K*4*(2*sm_count//(cdiv(M, BM)*cdiv(K, BN)) > 1)
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#ifndef BM
#define BM 128      // tune: 64 128 256
#endif
#ifndef BN
#define BN 128      // tune: 64 128 256
#endif
#ifndef BK
#define BK 32       // tune: 32 64
#endif
#ifndef STAGES
#define STAGES 4    // tune: 2 3 4
#endif
#ifndef WARPS_M
#define WARPS_M 2   // tune: 1 2 4
#endif
#ifndef WARPS_N
#define WARPS_N 2   // tune: 1 2 4
#endif
#ifndef FEW_WARPS
#define FEW_WARPS 8 // tune: 4 8 16
#endif
// A warp's accumulators must fit its registers, and its tile must be worth its loads.
// tune-if: BM*BN <= 4096*WARPS_M*WARPS_N
// tune-if: BM*BN >= 1024*WARPS_M*WARPS_N
// tune-if: BM >= 32*WARPS_M and BN >= 32*WARPS_N and WARPS_M*WARPS_N >= 4
// tune-if: STAGES*(BM + BN)*BK*2 <= smem_optin

static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
static constexpr int CHUNKS = BK / 8;                          // of 16 bytes, per row of a tile
static constexpr int STAGE = (BM + BN) * BK;                   // elements
static constexpr int M_TILES = BM / WARPS_M / 16;              // of a warp
static constexpr int N_TILES = BN / WARPS_N / 8;
static_assert(sizeof(scalar_t) == 2, "two-byte elements only");

// ---------------------------------------------------------------- instructions

static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if DTYPE_BFLOAT16
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

static __device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// 16 bytes from global to shared memory, or zeros.
static __device__ __forceinline__ void copy_async(uint32_t target, const scalar_t* source, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(inside ? 16 : 0)
                 : "memory");
}

static __device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
static __device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

static __device__ __forceinline__ float gated(float g, float u) { return g / (1.0f + __expf(-g)) * u; }

static __device__ __forceinline__ uint32_t packed(float low, float high) {
#if DTYPE_BFLOAT16
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
#else
    __half2 pair = __floats2half2_rn(low, high);
#endif
    return *reinterpret_cast<uint32_t*>(&pair);
}

static __device__ __forceinline__ scalar_t* hidden(void* workspace) {
    return reinterpret_cast<scalar_t*>(static_cast<char*>(workspace) + 256);
}

static __device__ __forceinline__ float* parts(void* workspace, int64_t M, int64_t N) {
    return reinterpret_cast<float*>(hidden(workspace) + M * N);
}

// ---------------------------------------------------------------- many tokens

// A tile row is BK elements; its 16-byte chunks are permuted so that the 8 rows that one ldmatrix reads at one depth
// fall into different banks.
static __device__ __forceinline__ int swizzled(int row, int chunk) {
    return row * BK + (chunk ^ (row / (8 / CHUNKS) % CHUNKS)) * 8;
}

// The right operand of a block: BN rows of weights. Rows of the lower half come from `low`, those of the upper half
// from `high`, and every warp takes as many of one as of the other: for gate_up these are gate and up.
struct Weights {
    const scalar_t* low;
    const scalar_t* high;
    int64_t low_rows, high_rows;   // valid ones, may be negative
};

static __device__ __forceinline__ void fetch(uint32_t stage, const scalar_t* left, int64_t left_rows,
                                             const Weights& right, int64_t depth, int64_t k, int64_t k_end) {
#pragma unroll
    for (int i = 0; i < BM * CHUNKS / THREADS; ++i) {
        const int row = (threadIdx.x + i * THREADS) / CHUNKS, chunk = threadIdx.x % CHUNKS;
        const bool inside = row < left_rows && k + chunk * 8 < k_end;
        copy_async(stage + swizzled(row, chunk) * 2, inside ? left + row * depth + k + chunk * 8 : left, inside);
    }
#pragma unroll
    for (int i = 0; i < BN * CHUNKS / THREADS; ++i) {
        const int row = (threadIdx.x + i * THREADS) / CHUNKS, chunk = threadIdx.x % CHUNKS;
        const bool upper = row >= BN / 2;
        const int own = upper ? row - BN / 2 : row;
        const scalar_t* source = upper ? right.high : right.low;
        const bool inside = own < (upper ? right.high_rows : right.low_rows) && k + chunk * 8 < k_end;
        copy_async(stage + (BM * BK + swizzled(row, chunk)) * 2,
                   inside ? source + own * depth + k + chunk * 8 : left, inside);
    }
}

// One stage: sum += left[BM, BK] · right[BN, BK]ᵀ, this warp's part of it.
static __device__ __forceinline__ void multiply_stage(float (&sum)[M_TILES][N_TILES][4], uint32_t stage) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int m0 = warp / WARPS_N * (BM / WARPS_M), n0 = warp % WARPS_N * (BN / WARPS_N / 2);
#pragma unroll
    for (int k = 0; k < BK / 16; ++k) {
        uint32_t a[M_TILES][4], b[N_TILES / 2][4];
#pragma unroll
        for (int i = 0; i < M_TILES; ++i)
            ldmatrix(a[i], stage + swizzled(m0 + i * 16 + lane % 16, k * 2 + lane / 16) * 2);
#pragma unroll
        for (int j = 0; j < N_TILES / 2; ++j) {
            const int half = j / (N_TILES / 4), within = j % (N_TILES / 4);
            const int row = half * (BN / 2) + n0 + within * 16 + lane / 16 * 8 + lane % 8;
            ldmatrix(b[j], stage + (BM * BK + swizzled(row, k * 2 + lane / 8 % 2)) * 2);
        }
#pragma unroll
        for (int i = 0; i < M_TILES; ++i)
#pragma unroll
            for (int j = 0; j < N_TILES; ++j) mma(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
}

static __device__ __forceinline__ void multiply(float (&sum)[M_TILES][N_TILES][4], const scalar_t* left,
                                                int64_t left_rows, const Weights& right, int64_t depth,
                                                int64_t k_begin, int64_t k_end) {
    extern __shared__ __align__(128) unsigned char dynamic_smem[];
    const uint32_t smem = static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_smem));
    const int steps = int((k_end - k_begin + BK - 1) / BK);
#pragma unroll 1
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < steps) fetch(smem + s * STAGE * 2, left, left_rows, right, depth, k_begin + s * BK, k_end);
        commit();
    }
    int reading = 0, writing = STAGES - 1;
    for (int step = 0; step < steps; ++step) {
        wait<STAGES - 2>();
        __syncthreads();   // this stage has landed for all, and all have left the one that is fetched next
        if (step + STAGES - 1 < steps)
            fetch(smem + writing * STAGE * 2, left, left_rows, right, depth, k_begin + (step + STAGES - 1) * BK, k_end);
        commit();   // an empty group keeps the count
        multiply_stage(sum, smem + reading * STAGE * 2);
        reading = reading + 1 == STAGES ? 0 : reading + 1;
        writing = writing + 1 == STAGES ? 0 : writing + 1;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
gate_up(scalar_t* out, const scalar_t* x, const scalar_t* gate, const scalar_t* up, const scalar_t* down_weight,
        int64_t M, int64_t K, int64_t N, void* workspace) {
    const int64_t m0 = int64_t(blockIdx.x) * BM, n0 = int64_t(blockIdx.y) * (BN / 2);
    const Weights weights = {gate + n0 * K, up + n0 * K, N - n0, N - n0};
    float sum[M_TILES][N_TILES][4] = {};
    multiply(sum, x + m0 * K, M - m0, weights, K, 0, K);

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t row0 = m0 + warp / WARPS_N * (BM / WARPS_M) + lane / 4;
    const int64_t column0 = n0 + warp % WARPS_N * (BN / WARPS_N / 2) + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < M_TILES * 2; ++i) {   // an accumulator holds two columns of a row and two of the row 8 below
        const int64_t row = row0 + i * 8;
        if (row >= M) break;
        scalar_t* h = hidden(workspace) + row * N + column0;
#pragma unroll
        for (int j = 0; j < N_TILES / 2; ++j) {
            const float* g = sum[i / 2][j] + i % 2 * 2;
            const float* u = sum[i / 2][j + N_TILES / 2] + i % 2 * 2;
            if (column0 + j * 8 < N)
                *reinterpret_cast<uint32_t*>(h + j * 8) = packed(gated(g[0], u[0]), gated(g[1], u[1]));
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
down(scalar_t* out, const scalar_t* x, const scalar_t* gate, const scalar_t* up, const scalar_t* down_weight,
     int64_t M, int64_t K, int64_t N, void* workspace) {
    const int64_t m0 = int64_t(blockIdx.x) * BM, n0 = int64_t(blockIdx.y) * BN;
    const scalar_t* low = down_weight + n0 * N;
    const Weights weights = {low, low + BN / 2 * N, K - n0, K - n0 - BN / 2};
    const int64_t depth = (N + BK * gridDim.z - 1) / (BK * gridDim.z) * BK;   // of a part
    const int64_t k_begin = min(N, int64_t(blockIdx.z) * depth), k_end = min(N, k_begin + depth);
    float sum[M_TILES][N_TILES][4] = {};
    multiply(sum, hidden(workspace) + m0 * N, M - m0, weights, N, k_begin, k_end);

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t row0 = m0 + warp / WARPS_N * (BM / WARPS_M) + lane / 4;
    const int64_t column0 = n0 + warp % WARPS_N * (BN / WARPS_N / 2) + lane % 4 * 2;
    if (blockIdx.x + blockIdx.y + blockIdx.z + threadIdx.x == 0) *static_cast<int*>(workspace) = gridDim.z;
#pragma unroll
    for (int i = 0; i < M_TILES * 2; ++i) {
        const int64_t row = row0 + i * 8;
        if (row >= M) break;
        scalar_t* result = out + row * K + column0;
        float* part = parts(workspace, M, N) + (blockIdx.z * M + row) * K + column0;
#pragma unroll
        for (int j = 0; j < N_TILES; ++j) {
            const int offset = j % (N_TILES / 2) * 8 + j / (N_TILES / 2) * (BN / 2);
            const float* value = sum[i / 2][j] + i % 2 * 2;
            if (column0 + offset >= K) continue;
            if (gridDim.z == 1)
                *reinterpret_cast<uint32_t*>(result + offset) = packed(value[0], value[1]);
            else
                *reinterpret_cast<float2*>(part + offset) = make_float2(value[0], value[1]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
add_parts(scalar_t* out, const scalar_t* x, const scalar_t* gate, const scalar_t* up, const scalar_t* down_weight,
          int64_t M, int64_t K, int64_t N, void* workspace) {
    const int64_t i = (int64_t(blockIdx.x) * 256 + threadIdx.x) * 4;
    if (i >= M * K) return;   // K % 8 == 0: four at a time leaves no rest
    const int count = *static_cast<const int*>(workspace);
    const float* part = parts(workspace, M, N) + i;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (int p = 0; p < count; ++p) {
        const float4 value = *reinterpret_cast<const float4*>(part + p * M * K);
        sum = make_float4(sum.x + value.x, sum.y + value.y, sum.z + value.z, sum.w + value.w);
    }
    *reinterpret_cast<uint2*>(out + i) = make_uint2(packed(sum.x, sum.y), packed(sum.z, sum.w));
}

// ---------------------------------------------------------------- few tokens

static constexpr int FEW_UNROLL = 4;    // loads of 32 elements of depth in flight, for each of four weight rows
static constexpr int TOKEN_TILES = 2;   // of 8; where the second is empty its products are wasted, and cost no time

// Weights are read once: they pass L1 by. Predicated rather than branched around, so that all loads leave before the
// first is waited for.
static __device__ __forceinline__ uint4 load_once(const scalar_t* source, bool inside) {
    uint4 value;
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
        " @p ld.global.nc.L1::no_allocate.L2::128B.v4.b32 {%0,%1,%2,%3}, [%4]; }"
        : "=&r"(value.x), "=&r"(value.y), "=&r"(value.z), "=&r"(value.w)
        : "l"(source), "r"(int(inside)));
    return value;
}

static __device__ __forceinline__ uint4 load_shared(const scalar_t* source, bool inside) {
    return inside ? __ldg(reinterpret_cast<const uint4*>(source)) : make_uint4(0, 0, 0, 0);
}

// sum[r][t] = 16 rows of weights `row[r]` times 8 tokens of tile t, over this warp's share of the depth.
// mma wants, of every 16 of the depth, elements 2q, 2q+1, 2q+8 and 2q+9 in the lanes of quarter q; any order does as
// long as both sides agree, so lane q takes elements 8q .. 8q+7 of 32 and spends them on two mma.
static __device__ __forceinline__ void few_tokens(float (&sum)[2][TOKEN_TILES][4], const scalar_t* x, int tokens,
                                                  const scalar_t* const (&weight)[2], const int (&rows)[2],
                                                  int64_t depth) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane / 4, q = lane % 4;
    const int64_t stride = 32 * FEW_UNROLL * FEW_WARPS;
    for (int64_t base = warp * 32 * FEW_UNROLL + q * 8; base - q * 8 < depth; base += stride) {
        uint4 low[2][FEW_UNROLL], high[2][FEW_UNROLL];
#pragma unroll
        for (int u = 0; u < FEW_UNROLL; ++u)
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                const int64_t k = base + u * 32;
                low[m][u] = load_once(weight[m] + r * depth + k, k < depth && r < rows[m]);
                high[m][u] = load_once(weight[m] + (r + 8) * depth + k, k < depth && r + 8 < rows[m]);
            }
#pragma unroll
        for (int u = 0; u < FEW_UNROLL; ++u)
#pragma unroll
            for (int t = 0; t < TOKEN_TILES; ++t) {
                const int64_t k = base + u * 32;
                const int token = t * 8 + r;
                const uint4 b = load_shared(x + token * depth + k, k < depth && token < tokens);
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    const uint32_t first[4] = {low[m][u].x, high[m][u].x, low[m][u].y, high[m][u].y};
                    const uint32_t second[4] = {low[m][u].z, high[m][u].z, low[m][u].w, high[m][u].w};
                    mma(sum[m][t], first, b.x, b.y);
                    mma(sum[m][t], second, b.z, b.w);
                }
            }
    }
}

// Adds up the warps' shares; total[m][t][row][token] is then valid for all threads.
static __device__ __forceinline__ const float* add_warps(const float (&sum)[2][TOKEN_TILES][4]) {
    constexpr int COUNT = 2 * TOKEN_TILES * 128;
    __shared__ float share[FEW_WARPS][COUNT];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int t = 0; t < TOKEN_TILES; ++t)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                share[warp][((m * TOKEN_TILES + t) * 16 + lane / 4 + e / 2 * 8) * 8 + lane % 4 * 2 + e % 2] =
                    sum[m][t][e];
    __syncthreads();
    for (int i = threadIdx.x; i < COUNT; i += 32 * FEW_WARPS) {
        float total = share[0][i];
#pragma unroll
        for (int w = 1; w < FEW_WARPS; ++w) total += share[w][i];
        share[0][i] = total;
    }
    __syncthreads();
    return share[0];
}

extern "C" __global__ void __launch_bounds__(32 * FEW_WARPS)
gate_up_few(scalar_t* out, const scalar_t* x, const scalar_t* gate, const scalar_t* up, const scalar_t* down_weight,
            int64_t M, int64_t K, int64_t N, void* workspace) {
    const int tokens = int(M);
    const int64_t n0 = int64_t(blockIdx.x) * 16;
    const scalar_t* const weights[2] = {gate + n0 * K, up + n0 * K};
    const int rows[2] = {int(min(int64_t(16), N - n0)), int(min(int64_t(16), N - n0))};
    float sum[2][TOKEN_TILES][4] = {};
    few_tokens(sum, x, tokens, weights, rows, K);
    const float* total = add_warps(sum);
    for (int i = threadIdx.x; i < TOKEN_TILES * 128; i += 32 * FEW_WARPS) {
        const int row = i % 16, token = i / 16;
        const int at = (token / 8 * 16 + row) * 8 + token % 8;
        if (token < tokens && row < rows[0])
            hidden(workspace)[token * N + n0 + row] = scalar_t(gated(total[at], total[TOKEN_TILES * 128 + at]));
    }
}

extern "C" __global__ void __launch_bounds__(32 * FEW_WARPS)
down_few(scalar_t* out, const scalar_t* x, const scalar_t* gate, const scalar_t* up, const scalar_t* down_weight,
         int64_t M, int64_t K, int64_t N, void* workspace) {
    const int tokens = int(M);
    const int64_t n0 = int64_t(blockIdx.x) * 32;
    const scalar_t* const weights[2] = {down_weight + n0 * N, down_weight + (n0 + 16) * N};
    const int rows[2] = {int(min(int64_t(16), K - n0)), int(min(int64_t(16), K - n0 - 16))};
    float sum[2][TOKEN_TILES][4] = {};
    few_tokens(sum, hidden(workspace), tokens, weights, rows, N);
    const float* total = add_warps(sum);
    for (int i = threadIdx.x; i < TOKEN_TILES * 256; i += 32 * FEW_WARPS) {
        const int row = i % 32, token = i / 32;
        const int at = ((row / 16 * TOKEN_TILES + token / 8) * 16 + row % 16) * 8 + token % 8;
        if (token < tokens && row % 16 < rows[row / 16]) out[token * K + n0 + row] = scalar_t(total[at]);
    }
}
