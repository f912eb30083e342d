// 5: few tokens on Hopper: one block an SM, each with its equal share of the rows of gate and up, which a producer warp
// streams through shared memory by bulk copies, one a row and slot, of what lies in one piece. Eight warps share the depth
// of a slot, so that every element of a token is wanted by one warp alone: tokens go from the L2 cache straight to its
// registers, some slots ahead. The warps that multiply meet only when a tile is done.
//
// Both operands of mma.sync take elements 8q .. 8q+7 of 32 in the lanes of quarter q, as in 3. Rows in a slot are 64 bytes more
// than a multiple of 128 apart, so that the two rows which a quarter of a warp reads at a time fall into different banks.
//
// At M=1, K=4096, N=11008 in 16 bits: 180 MB of weights, 60 us at the 3.0 TB/s of a copy on an H100; 0.18 GFLOP, 0.2 us.
// Tokens are read again for every ROWS rows of gate and up: with 16 tokens and ROWS=16 that is half as much as the weights.
// What is under way, STAGES slots an SM, passes through the L2 cache and drives out as much: where that is full of what must be
// written back first, fewer bytes under way and EVICT=1 may leave more of it where it is.
//
// Compiled for sm_90a, its indices checked in an emulation on a CPU. It has never run on a GPU, and nothing was measured.
//
// Needs sm_90, K % 8 == 0 and 16-bit elements; any M, but the weights are read again for every 16 tokens.
//
// launch streamed: grid(sm_count) block(288) smem(min(STAGES, (230144 - 1024*ROWS)//(2*ROWS*(2*DEPTH + 64)))*(2*ROWS*(2*DEPTH + 64)) + 1024*ROWS + 2304)
// tune-if: smem_optin >= 232448
#if DTYPE_BFLOAT16
#include <cuda_bf16.h>
#else
#include <cuda_fp16.h>
#endif

#ifndef ROWS
#define ROWS 32       // tune: 16 32
#endif
#ifndef DEPTH
#define DEPTH 256     // tune: 256 512
#endif
#ifndef STAGES
#define STAGES 5      // tune: 2 3 4 5 8 11
#endif
#ifndef EVICT
#define EVICT 0       // tune: 0 1
#endif

static_assert(sizeof(scalar_t) == 2, "two-byte elements only");

#if __CUDA_ARCH__ >= 900
namespace {

constexpr int WARPS = 8;     // that multiply; one more fetches
constexpr int TOKENS = 16;   // at a time
constexpr int SLOT = 2 * ROWS * (DEPTH * 2 + 64);   // bytes
constexpr int PITCH = 2 * ROWS + 4;                 // of a token's sums: eight rows by four tokens in 32 banks
constexpr int SHARE_BYTES = WARPS * TOKENS * PITCH * 4;
constexpr int FIT = (232192 - SHARE_BYTES) / SLOT, SLOTS = STAGES < FIT ? STAGES : FIT;
static_assert(SLOTS > 0 && 16 * SLOTS <= 256, "barriers");

// ---------------------------------------------------------------- instructions

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, int parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}\n"
        ::"r"(barrier), "r"(parity) : "memory");
}

// The warps that multiply.
__device__ __forceinline__ void together() { asm volatile("bar.sync 1, %0;" ::"n"(32 * WARPS) : "memory"); }

__device__ __forceinline__ uint64_t read_once() {
    uint64_t policy = 0;
#if EVICT
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
    return policy;
}

// A piece of global memory, in multiples of 16 bytes.
__device__ __forceinline__ void bulk_load(uint32_t to, const scalar_t* from, int bytes, uint32_t barrier, uint64_t policy) {
#if EVICT
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
        ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "l"(policy) : "memory");
#else
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
#endif
}

// 16 bytes of shared memory, or zeros.
__device__ __forceinline__ uint4 load_piece(uint32_t from, bool inside) {
    uint4 piece;
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
        " @p ld.shared.v4.b32 {%0, %1, %2, %3}, [%4]; }"
        : "=&r"(piece.x), "=&r"(piece.y), "=&r"(piece.z), "=&r"(piece.w)
        : "r"(from), "r"(int(inside)) : "memory");
    return piece;
}

// The same of global memory. Volatile, so that it is not put off until it is needed.
__device__ __forceinline__ uint4 load_tokens(const scalar_t* from, bool inside) {
    uint4 piece;
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
        " @p ld.global.v4.b32 {%0, %1, %2, %3}, [%4]; }"
        : "=&r"(piece.x), "=&r"(piece.y), "=&r"(piece.z), "=&r"(piece.w)
        : "l"(from), "r"(int(inside)) : "memory");
    return piece;
}

__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
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

__device__ __forceinline__ float gated(float g, float u) { return __fdividef(g, 1.0f + __expf(-g)) * u; }

// ---------------------------------------------------------------- who does what

// How a slot is filled: with this depth of up to so many rows of each operand.
template <int rows, int depth, int operands>
struct Shape {
    static constexpr int HEIGHT = rows, LENGTH = depth, OPERANDS = operands;
    static constexpr int STRIDE = depth * 2 + 64;             // bytes, of a row
    static constexpr int TILES = rows / 16;                   // of an operand
    static constexpr int BLOCKS = depth / (32 * WARPS);       // of 32 of the depth: a warp's part
    static constexpr int AHEAD = BLOCKS > 2 ? 2 : 4;          // slots whose tokens are under way
    static_assert(operands * rows * STRIDE <= SLOT && operands * rows + 4 <= PITCH && BLOCKS > 0, "fits");
};

// This block's tiles of up to `limit` weight rows, each of them for 16 tokens at a time.
struct Part {
    int width, groups, rounds, share, longer;   // the first `longer` shares have a row more

    __device__ __forceinline__ Part(int width, int tokens, int limit)
        : width(width), groups((tokens + TOKENS - 1) / TOKENS) {
        const int blocks = gridDim.x;
        rounds = (width + blocks * limit - 1) / (blocks * limit);
        share = width / (rounds * blocks);
        longer = width % (rounds * blocks);
    }
    __device__ __forceinline__ int tiles() const { return rounds * groups; }
    __device__ __forceinline__ int round(int tile) const { return tile / groups; }
    __device__ __forceinline__ int token(int tile) const { return tile % groups * TOKENS; }
    __device__ __forceinline__ int number(int tile) const { return round(tile) * gridDim.x + blockIdx.x; }
    __device__ __forceinline__ int start(int number) const { return number * share + min(number, longer); }
    __device__ __forceinline__ int first(int tile) const { return start(number(tile)); }
    __device__ __forceinline__ int rows(int tile) const { return share + (number(tile) < longer); }
};

// Slots in shared memory, and for each a barrier that says it is full and one that says it is empty.
struct Ring {
    uint32_t slots, full, empty;
    int at = 0, parity = 0;

    __device__ __forceinline__ explicit Ring(uint32_t from)
        : slots(from), full(from + SLOTS * SLOT + SHARE_BYTES), empty(full + 8 * SLOTS) {}
    __device__ __forceinline__ uint32_t slot() const { return slots + at * SLOT; }
    __device__ __forceinline__ uint32_t filled() const { return full + 8 * at; }
    __device__ __forceinline__ uint32_t emptied() const { return empty + 8 * at; }
    __device__ __forceinline__ void open() const {
#pragma unroll 1
        for (int i = 0; i < SLOTS; ++i) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, WARPS);
        }
        barrier_fence();
    }
    __device__ __forceinline__ void next() {
        at = at + 1 == SLOTS ? 0 : at + 1;
        if (at == 0) parity ^= 1;
    }
};

// ---------------------------------------------------------------- the warp that fetches

// All threads of the block, once: the barriers are there.
__device__ __forceinline__ void begin() { __syncthreads(); }

struct Fetcher {
    Ring ring;
    uint64_t policy;
    int fetched = 0;

    // The block begins together, but the first slots are on their way before.
    __device__ __forceinline__ void begin_after(int slots) const {
        if (fetched == slots) begin();
    }

    template <class S>
    __device__ __forceinline__ void fetch(const scalar_t* const (&operand)[S::OPERANDS], int first, int rows, int depth) {
        const int lane = threadIdx.x % 32;
        const int64_t from = (int64_t(first) + lane) * depth;
#pragma unroll 1
        for (int k = 0; k < depth; k += S::LENGTH) {
            begin_after(SLOTS);
            const int bytes = min(S::LENGTH, depth - k) * 2;
            // A fresh barrier counts as having finished a phase of parity 1: the first round passes.
            barrier_wait(ring.emptied(), ring.parity ^ 1);
            if (lane == 0) barrier_expect(ring.filled(), S::OPERANDS * rows * bytes);
            __syncwarp();
#pragma unroll
            for (int i = 0; i < S::OPERANDS; ++i)
                if (lane < rows)
                    bulk_load(ring.slot() + (i * S::HEIGHT + lane) * S::STRIDE, operand[i] + from + k, bytes, ring.filled(),
                              policy);
            ring.next();
            ++fetched;
        }
    }
};

// ---------------------------------------------------------------- the warps that multiply

// This warp's part of 16 tokens at depth k and on.
template <class S>
struct Tokens {
    uint4 piece[2][S::BLOCKS];

    __device__ __forceinline__ void load(const scalar_t* x, int k, int depth, int tokens) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane / 4, q = lane % 4;
#pragma unroll
        for (int j = 0; j < S::BLOCKS; ++j) {
            const int at = k + (j * WARPS + warp) * 32 + q * 8;
#pragma unroll
            for (int t = 0; t < 2; ++t)
                piece[t][j] = load_tokens(x + int64_t(t * 8 + r) * depth + at, at < depth && t * 8 + r < tokens);
        }
    }
};

// Rows past the tile's own hold what was there before: no other row's sums see it.
template <class S>
__device__ __forceinline__ void multiply(
    float (&sum)[S::OPERANDS * S::TILES][2][4], const Tokens<S>& x, uint32_t slot, int left, bool tall, bool both) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane / 4, q = lane % 4;
#pragma unroll
    for (int j = 0; j < S::BLOCKS; ++j) {
        const int at = (j * WARPS + warp) * 32 + q * 8;
        const uint32_t from = slot + r * S::STRIDE + at * 2;
#pragma unroll
        for (int m = 0; m < S::OPERANDS * S::TILES; ++m) {
            if (m % S::TILES == 1 && !tall) continue;
            const uint4 l = load_piece(from + m * 16 * S::STRIDE, at < left);
            const uint4 h = load_piece(from + (m * 16 + 8) * S::STRIDE, at < left);
            const uint32_t first[4] = {l.x, h.x, l.y, h.y}, second[4] = {l.z, h.z, l.w, h.w};
            mma(sum[m][0], first, x.piece[0][j].x, x.piece[0][j].y);
            mma(sum[m][0], second, x.piece[0][j].z, x.piece[0][j].w);
            if (both) {
                mma(sum[m][1], first, x.piece[1][j].x, x.piece[1][j].y);
                mma(sum[m][1], second, x.piece[1][j].z, x.piece[1][j].w);
            }
        }
    }
}

// The sums of a tile over this warp's part of the depth, to shared memory: [warp][token][row]. The block begins at
// its opening tile, when this has asked for its first tokens.
template <class S>
__device__ __forceinline__ void multiply_tile(
    Ring& ring, float* share, const scalar_t* x, int depth, int rows, int tokens, bool opening) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane / 4, q = lane % 4;
    float sum[S::OPERANDS * S::TILES][2][4] = {};
    Tokens<S> ahead[S::AHEAD];
#pragma unroll
    for (int i = 0; i < S::AHEAD; ++i) ahead[i].load(x, i * S::LENGTH, depth, tokens);
    if (opening) begin();
#pragma unroll 1
    for (int from = 0; from < depth; from += S::AHEAD * S::LENGTH) {
#pragma unroll
        for (int i = 0; i < S::AHEAD; ++i) {
            const int k = from + i * S::LENGTH;
            if (k >= depth) break;
            barrier_wait(ring.filled(), ring.parity);
            multiply<S>(sum, ahead[i], ring.slot(), depth - k, rows > 16, tokens > 8);
            __syncwarp();
            if (lane == 0) barrier_arrive(ring.emptied());
            ring.next();
            ahead[i].load(x, k + S::AHEAD * S::LENGTH, depth, tokens);
        }
    }
#pragma unroll
    for (int m = 0; m < S::OPERANDS * S::TILES; ++m)
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                share[(warp * TOKENS + t * 8 + q * 2 + e % 2) * PITCH + m * 16 + r + e / 2 * 8] = sum[m][t][e];
}

// In the order of the warps, so that the sum is the same each time.
__device__ __forceinline__ float total(const float* share, int token, int row) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += share[(w * TOKENS + token) * PITCH + row];
    return sum;
}

using Rows = Shape<ROWS, DEPTH, 2>;

}  // namespace
#endif

extern "C" __global__ void __launch_bounds__(288, 1)
streamed(scalar_t* out, const scalar_t* x, const scalar_t* gate, const scalar_t* up, int64_t M, int64_t K, int64_t N,
         void* workspace) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) unsigned char dynamic_smem[];
    const int depth = int(K), tokens = int(M);
    Ring ring{static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_smem))};
    const Part part{int(N), tokens, Rows::HEIGHT};

    if (threadIdx.x / 32 == WARPS) {
        if (threadIdx.x % 32 == 0) ring.open();
        __syncwarp();
        Fetcher fetcher{ring, read_once()};
#pragma unroll 1
        for (int tile = 0; tile < part.tiles(); ++tile)
            fetcher.fetch<Rows>({gate, up}, part.first(tile), part.rows(tile), depth);
        if (fetcher.fetched <= SLOTS) begin();
        return;
    }

    float* share = reinterpret_cast<float*>(dynamic_smem + SLOTS * SLOT);
#pragma unroll 1
    for (int tile = 0; tile < part.tiles(); ++tile) {
        const int token0 = part.token(tile), rows = part.rows(tile), n0 = part.first(tile);
        multiply_tile<Rows>(ring, share, x + int64_t(token0) * depth, depth, rows, tokens - token0, tile == 0);
        together();
#pragma unroll
        for (int i = threadIdx.x; i < TOKENS * ROWS; i += 32 * WARPS) {
            const int row = i % ROWS, token = i / ROWS;
            if (row < rows && token0 + token < tokens)
                out[(token0 + token) * N + n0 + row] =
                    scalar_t(gated(total(share, token, row), total(share, token, ROWS + row)));
        }
        together();   // before the shares are written again
    }
#else
    __trap();  // compiled for another architecture, where the constraints above never let it run
#endif
}
