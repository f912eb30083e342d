// 5: few tokens, streamed: one block an SM, each with its equal share of the weight's rows, and cp.async keeps STAGES slots
// of them under way. The warps of a block share the depth.
//
// At M=1, K=11008, N=4096 in 16 bits: 90 MB of weights, 30 us at the 3.0 TB/s of a copy on an H100; 0.09 GFLOP, 0.1 us.
//
// Needs K % 8 == 0 and 16-bit elements; any M, but the weights are read again for every 16 tokens.
//
// Compiled for sm_90a and sm_86, its indices checked in an emulation on a CPU; not run. mlp/5, which did run, has these steps as
// its second product. A form with an L2::evict_first policy on its copies stopped with an illegal instruction on an H100; in
// mlp/5 the policy gained nothing, so it is gone.
//
// launch streamed: grid(sm_count) block(256) smem(min(STAGES, smem_optin//24576)*24576)
#if DTYPE_BFLOAT16
#include <cuda_bf16.h>
#else
#include <cuda_fp16.h>
#endif

#ifndef STAGES
#define STAGES 8      // tune: 4 6 8 9
#endif
#ifndef SPREAD
#define SPREAD 1      // tune: 0 1
#endif

static constexpr int THREADS = 256;
static constexpr int TOKENS = 16;                         // at a time
static constexpr int ROWS = 32;                          // at most, of a block at a time
static constexpr int PANELS = 4;                         // of 64 elements, per step
static constexpr int PANEL_ROWS = ROWS + TOKENS;
static constexpr int SLOT = PANELS * PANEL_ROWS * 128;   // bytes: rows of 64 elements
static_assert(sizeof(scalar_t) == 2, "two-byte elements only");

// What a block may have, as smem_optin of the launch plan says it.
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
static constexpr int SHARED_BYTES = 232448;
#elif __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870
static constexpr int SHARED_BYTES = 166912;
#else
static constexpr int SHARED_BYTES = 101376;
#endif
static constexpr int DEPTH = STAGES < SHARED_BYTES / SLOT ? STAGES : SHARED_BYTES / SLOT;

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
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
                 "r"(inside ? 16 : 0)
                 : "memory");
}

static __device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
static __device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---------------------------------------------------------------- the product

// A slot holds rows of 64 elements, 128 bytes; their 16-byte chunks are permuted so that the 8 rows that one ldmatrix
// reads at one depth fall into different banks.
static __device__ __forceinline__ uint32_t at(int row, int chunk) { return row * 128 + (chunk ^ row % 8) * 16; }

// This block's part of a product: tiles of up to LIMIT rows, for each 16 tokens in turn, and the depth in steps.
struct Part {
    int depth, groups, steps, tiles, share, longer;   // the first `longer` shares have a row more

    __device__ __forceinline__ Part(int width, int depth, int tokens, int limit, int step)
        : depth(depth), groups((tokens + TOKENS - 1) / TOKENS), steps((depth + step - 1) / step) {
        const int blocks = gridDim.x, rounds = (width + blocks * limit - 1) / (blocks * limit);
        tiles = rounds * groups;
        share = width / (rounds * blocks);
        longer = width % (rounds * blocks);
    }
    __device__ __forceinline__ int items() const { return tiles * steps; }
    __device__ __forceinline__ int group(int tile) const { return tile % groups; }
    __device__ __forceinline__ int number(int tile) const { return tile / groups * gridDim.x + blockIdx.x; }
    __device__ __forceinline__ int first(int tile) const { return number(tile) * share + min(number(tile), longer); }
    __device__ __forceinline__ int rows(int tile) const { return share + (number(tile) < longer); }

    // Blocks start at different depths: rows are a power of two apart, and so would be all that is read at a time.
    __device__ __forceinline__ int place(int step) const {
        if (!SPREAD) return step;
        const int moved = step + int(blockIdx.x) % steps;
        return moved < steps ? moved : moved - steps;
    }
};

struct Operands {
    const scalar_t *x, *weight;
    int tokens;
    Part part;

    // Slot = PANELS times: weight rows, tokens, each 64 deep.
    __device__ __forceinline__ void fetch(uint32_t slot, int item) const {
        if (item < part.items()) {
            const int tile = item / part.steps, chunk = threadIdx.x % 32, row = threadIdx.x / 32;
            const int k = part.place(item % part.steps) * 64 * PANELS + chunk * 8, rows = part.rows(tile);
            const bool inside = k < part.depth;
            const scalar_t* from = weight + int64_t(part.first(tile) + row) * part.depth + (inside ? k : 0);
            const uint32_t to = slot + chunk / 8 * PANEL_ROWS * 128 + at(row, chunk % 8);
#pragma unroll
            for (int i = 0; i < ROWS; i += THREADS / 32)
                if (row + i < rows) copy_async(to + i * 128, from + int64_t(i) * part.depth, inside);
#pragma unroll
            for (int i = 0; i < TOKENS; i += THREADS / 32) {
                const int token = part.group(tile) * TOKENS + row + i;
                const bool exists = inside && token < tokens;
                copy_async(to + (ROWS + i) * 128, x + (exists ? int64_t(token) * part.depth + k : 0), exists);
            }
        }
        commit();   // an empty group keeps the count
    }
};

// One step: all rows, this warp's part of the depth.
static __device__ __forceinline__ void multiply(float (&sum)[2][2][4], uint32_t slot, bool both) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        uint32_t low[4], high[4], b[4];
        const int chunk = warp % 2 * 4 + k * 2;
        const uint32_t panel = slot + warp / 2 * PANEL_ROWS * 128;
        ldmatrix(low, panel + at(lane % 16, chunk + lane / 16));
        ldmatrix(high, panel + at(lane % 16, chunk + lane / 16) + 16 * 128);
        ldmatrix(b, panel + ROWS * 128 + at(lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2));
        mma(sum[0][0], low, b[0], b[1]);
        mma(sum[1][0], high, b[0], b[1]);
        if (both) {
            mma(sum[0][1], low, b[2], b[3]);
            mma(sum[1][1], high, b[2], b[3]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
streamed(scalar_t* out, const scalar_t* x, const scalar_t* weight, int64_t M, int64_t K, int64_t N, void* workspace) {
    extern __shared__ __align__(128) unsigned char dynamic_smem[];
    const uint32_t smem = static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_smem));
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane / 4, q = lane % 4;
    const Part part(int(N), int(K), int(M), ROWS, 64 * PANELS);
    const Operands operands = {x, weight, int(M), part};

#pragma unroll 1
    for (int item = 0; item < DEPTH - 1; ++item) operands.fetch(smem + item * SLOT, item);
    uint32_t reading = smem, writing = smem + (DEPTH - 1) * SLOT;
    const uint32_t last_slot = writing;
    int ahead = DEPTH - 1;   // the item that is fetched next

    float sum[2][2][4] = {};
#pragma unroll 1
    for (int tile = 0; tile < part.tiles; ++tile) {
        const int rows = part.rows(tile), n0 = part.first(tile), token0 = part.group(tile) * TOKENS;
        const bool both = M - token0 > 8;
#pragma unroll 1
        for (int step = 0; step < part.steps; ++step) {
            wait<DEPTH - 2>();
            __syncthreads();   // this slot has landed for all, and all have left the one that is fetched next
            operands.fetch(writing, ahead++);
            writing = writing == last_slot ? smem : writing + SLOT;
            multiply(sum, reading, both);
            if (step + 1 < part.steps) reading = reading == last_slot ? smem : reading + SLOT;
        }

        // Add up the warps' shares, in the slot that was read last: it is fetched into only after the next barrier.
        float* share = reinterpret_cast<float*>(dynamic_smem + (reading - smem));
        __syncthreads();
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int t = 0; t < 2; ++t)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int row = m * 16 + r + e / 2 * 8, token = t * 8 + q * 2 + e % 2;
                    share[(warp * TOKENS + token) * ROWS + row] = sum[m][t][e];
                    sum[m][t][e] = 0.0f;
                }
        __syncthreads();
#pragma unroll
        for (int i = threadIdx.x; i < TOKENS * ROWS; i += THREADS) {
            const int row = i % ROWS, token = token0 + i / ROWS;
            float total = 0.0f;
#pragma unroll
            for (int w = 0; w < THREADS / 32; ++w) total += share[w * TOKENS * ROWS + i];
            if (row < rows && token < M) out[int64_t(token) * N + n0 + row] = scalar_t(total);
        }
        reading = reading == last_slot ? smem : reading + SLOT;
    }
}
