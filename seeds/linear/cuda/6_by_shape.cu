// 6: by shape: up to 16 tokens the streamed kernel of 5, for more the wgmma kernel of 4 with tiles of 128, 192 or 256 columns
// and clusters of two. The plan counts the waves of each width, times the width and 104, which by the times of 4 is what a slice
// costs besides, divided by the parts of the depth where tiles leave more than half of the GPU idle; and it takes the least. On
// 132 SMs, 512 tokens and 4096 outputs want 256 and two parts (one wave of 128 blocks), 4096 tokens and 768 outputs 192 (as
// many), 4096 and 4096 want 256. What is new beside 4: no second kernel adds up the parts. The last one of a tile does,
// and before it a small kernel sets the counts to zero.
//
// 4096 tokens of 11008 to 4096 are 369 GFLOP over 0.2 GB: at least 0.37 ms of an H100's tensor cores; 1 token 30 us of memory.
// What its parts taught stands in 4 and 5.
//
// Compiled for sm_90a. It has never run on a GPU, and nothing was measured.
//
// Needs sm_90a, 16-bit elements, K % 8 == 0 and N % 8 == 0.
//
// Scratch memory, where the depth is split: counts of parts (4096 bytes), then the parts as the threads hold them.
//
// launch clear: grid(1) block(1024) when(M > 16 and sm_count//2//(cdiv(M, 256)*cdiv(N, 256)) > 1)
// launch streamed: grid(sm_count) block(288) smem(min(STAGES, 213760//(32*(2*DEPTH + 64)))*32*(2*DEPTH + 64) + 18688) when(M <= 16)
// launch linear_128: grid(2*min(sm_count//2, cdiv(M, 256)*cdiv(N, 128)), 1, max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 128))))) block(384) smem(214784//((128 + 128)*128)*((128 + 128)*128) + 17664) cluster(2, 1, 1) when(M > 16 and cdiv(cdiv(M, 256)*cdiv(N, 128), sm_count//2)*2784//max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 128)))) < cdiv(cdiv(M, 256)*cdiv(N, 192), sm_count//2)*3552//max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 192)))) and cdiv(cdiv(M, 256)*cdiv(N, 128), sm_count//2)*2784//max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 128)))) < cdiv(cdiv(M, 256)*cdiv(N, 256), sm_count//2)*4320//max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 256)))))
// launch linear_192: grid(2*min(sm_count//2, cdiv(M, 256)*cdiv(N, 192)), 1, max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 192))))) block(384) smem(214784//((128 + 192)*128)*((128 + 192)*128) + 17664) cluster(2, 1, 1) when(M > 16 and cdiv(cdiv(M, 256)*cdiv(N, 192), sm_count//2)*3552//max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 192)))) <= cdiv(cdiv(M, 256)*cdiv(N, 128), sm_count//2)*2784//max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 128)))) and cdiv(cdiv(M, 256)*cdiv(N, 192), sm_count//2)*3552//max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 192)))) < cdiv(cdiv(M, 256)*cdiv(N, 256), sm_count//2)*4320//max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 256)))))
// launch linear_256: grid(2*min(sm_count//2, cdiv(M, 256)*cdiv(N, 256)), 1, max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 256))))) block(384) smem(214784//((128 + 256)*128)*((128 + 256)*128) + 17664) cluster(2, 1, 1) when(M > 16 and cdiv(cdiv(M, 256)*cdiv(N, 256), sm_count//2)*4320//max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 256)))) <= cdiv(cdiv(M, 256)*cdiv(N, 128), sm_count//2)*2784//max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 128)))) and cdiv(cdiv(M, 256)*cdiv(N, 256), sm_count//2)*4320//max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 256)))) <= cdiv(cdiv(M, 256)*cdiv(N, 192), sm_count//2)*3552//max(1, min(4, sm_count//2//(cdiv(M, 256)*cdiv(N, 192)))))
// workspace: (4096 + 131072*sm_count)*(M > 16 and sm_count//2//(cdiv(M, 256)*cdiv(N, 256)) > 1)
// tensormap x_map: x box(128, 64) swizzle(128B)
// tensormap map_128: weight box(64, 64) swizzle(128B)
// tensormap map_192: weight box(96, 64) swizzle(128B)
// tensormap map_256: weight box(128, 64) swizzle(128B)
// tune-if: smem_optin >= 232448
#if DTYPE_BFLOAT16
#include <cuda_bf16.h>
#define WGMMA_TYPES "bf16.bf16"
#else
#include <cuda_fp16.h>
#define WGMMA_TYPES "f16.f16"
#endif

#ifndef DEPTH
#define DEPTH 512     // tune: 256 512 1024
#endif
#ifndef STAGES
#define STAGES 6      // tune: 2 3 4 6 11
#endif
#ifndef EVICT
#define EVICT 0       // tune: 0 1
#endif

#if DTYPE_FLOAT32
#error "two-byte elements only"
#endif

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
namespace {

constexpr int BM = 128;
constexpr uint32_t LEFT_BYTES = BM * 128;   // a row of a slice is 64 elements: 128 bytes, the width of the swizzle
constexpr int CLUSTER = 2;
constexpr int GROUP = 8;   // row tiles of a band: 4 and 16 cost 1 % at 4096 tokens

// ---------------------------------------------------------------- instructions

__device__ __forceinline__ uint32_t pack(float low, float high) {
    uint32_t pair;
#if DTYPE_BFLOAT16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
    return pair;
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// The barrier at the same place in block `rank` of the cluster. Nothing was written that others should see: a release at
// cluster scope would wait, in every slice, for all memory operations of the GPU.
__device__ __forceinline__ void barrier_arrive(uint32_t barrier, int rank) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n"
        ::"r"(barrier), "r"(rank) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, int parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}\n"
        ::"r"(barrier), "r"(parity) : "memory");
}

// Every thread of the cluster's blocks.
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// A box at (column, row) of a matrix; what lies outside arrives as zeros.
__device__ __forceinline__ void tma_load(uint32_t to, const CUtensorMap* map, int column, int row, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
        ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier) : "memory");
}

// To the same place in all blocks of the cluster, each of whose barriers counts the bytes.
__device__ __forceinline__ void tma_load_all(uint32_t to, const CUtensorMap* map, int column, int row, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%2, %3}], [%4], %5;"
        ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(uint16_t((1 << CLUSTER) - 1)) : "memory");
}

// Shared memory as wgmma sees it: 128-byte swizzle, groups of 8 rows 1024 bytes apart.
__device__ __forceinline__ uint64_t descriptor(uint32_t at) {
    return uint64_t((at & 0x3ffff) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

template <int REGISTERS>
__device__ __forceinline__ void registers_up() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }

template <int REGISTERS>
__device__ __forceinline__ void registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

__device__ __forceinline__ void store_matrices(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

__device__ __forceinline__ uint4 load_piece(uint32_t from) {
    uint4 piece;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(piece.x), "=r"(piece.y), "=r"(piece.z), "=r"(piece.w) : "r"(from) : "memory");
    return piece;
}

__device__ __forceinline__ void release(uint32_t* counter) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ __forceinline__ uint32_t acquire(const uint32_t* counter) {
    uint32_t count;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
    return count;
}

// A tensor map on its way, before it is first needed.
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// ================================================================ few tokens: the weights are streamed

namespace few {

constexpr int WARPS = 8;     // that multiply; one more fetches
constexpr int TOKENS = 16;   // at a time
constexpr int SLOT = 32 * (DEPTH * 2 + 64);   // bytes
constexpr int PITCH = 36;                     // of a token's sums: eight rows by four tokens in 32 banks
constexpr int SHARE_BYTES = WARPS * TOKENS * PITCH * 4;
constexpr int FIT = (232192 - SHARE_BYTES) / SLOT, SLOTS = STAGES < FIT ? STAGES : FIT;
static_assert(SLOTS > 0 && 16 * SLOTS <= 256, "barriers");

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
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

using Rows = Shape<32, DEPTH, 1>;

}  // namespace few

// ================================================================ many tokens: wgmma

// ---------------------------------------------------------------- one slice of the depth

#define VALUES16(c, n) \
    "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3]), \
    "+f"(c[n + 1][0]), "+f"(c[n + 1][1]), "+f"(c[n + 1][2]), "+f"(c[n + 1][3]), \
    "+f"(c[n + 2][0]), "+f"(c[n + 2][1]), "+f"(c[n + 2][2]), "+f"(c[n + 2][3]), \
    "+f"(c[n + 3][0]), "+f"(c[n + 3][1]), "+f"(c[n + 3][2]), "+f"(c[n + 3][3])
#define VALUES_128(c) VALUES16(c, 0), VALUES16(c, 4), VALUES16(c, 8), VALUES16(c, 12)
#define VALUES_192(c) VALUES_128(c), VALUES16(c, 16), VALUES16(c, 20)
#define VALUES_256(c) VALUES_192(c), VALUES16(c, 24), VALUES16(c, 28)
#define REGISTERS_128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_192 REGISTERS_128 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define REGISTERS_256 REGISTERS_192 \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define OPENING_128 "mov.b64 a, %64;\nmov.b64 b, %65;\nsetp.ne.b32 keep, %66, 0;\n"
#define OPENING_192 "mov.b64 a, %96;\nmov.b64 b, %97;\nsetp.ne.b32 keep, %98, 0;\n"
#define OPENING_256 "mov.b64 a, %128;\nmov.b64 b, %129;\nsetp.ne.b32 keep, %130, 0;\n"
#define STEP(width, keep) \
    "wgmma.mma_async.sync.aligned.m64n" #width "k16.f32." WGMMA_TYPES " {" REGISTERS_##width "}, a, b, " keep ", 1, 1, 0, 0;\n"
#define NEXT_STEP(width) "add.s64 a, a, 2;\nadd.s64 b, b, 2;\n" STEP(width, "yes")

// multiply: sum[64xwidth] = (keep ? sum : 0) + left right^T over 64 of the depth, in four steps of 16, 32 bytes apart. They
// stand in one asm: each by itself would cost the compiler as much as all together.
// arrived: registers that a wgmma wrote may be read from here on; keeps the compiler from moving reads up past the wait.
#define PRODUCT(width) \
    __device__ __forceinline__ void multiply(float (&sum)[width / 8][4], uint32_t left, uint32_t right, int keep) { \
        wgmma_fence(); \
        asm volatile( \
            "{\n.reg .pred keep, yes;\n.reg .b64 a, b;\nsetp.eq.b32 yes, 0, 0;\n" OPENING_##width \
            STEP(width, "keep") NEXT_STEP(width) NEXT_STEP(width) NEXT_STEP(width) "}\n" \
            : VALUES_##width(sum) : "l"(descriptor(left)), "l"(descriptor(right)), "r"(keep)); \
        wgmma_commit(); \
    } \
    __device__ __forceinline__ void arrived(float (&sum)[width / 8][4]) { \
        asm volatile("" : VALUES_##width(sum) :: "memory"); \
    }
PRODUCT(128)
PRODUCT(192)
PRODUCT(256)

// ---------------------------------------------------------------- tiles

// Tile `index`, in units of a cluster's: bands of GROUP row tiles, in a band column after column.
struct Tile {
    int row, column;

    __device__ __forceinline__ Tile(int index, int row_tiles, int column_tiles) {
        const int band = index / (GROUP * column_tiles), within = index % (GROUP * column_tiles);
        const int rows = min(GROUP, row_tiles - band * GROUP);
        row = band * GROUP + within % rows;
        column = within / rows;
    }
};

// This warp's 16 rows of a tile, 64 columns at a time: through its own 2 KB of shared memory, so that stores are whole
// 16-byte pieces, eight to a row. Pieces are permuted so that rows fall into different banks.
template <int BN>
__device__ __forceinline__ void store(
    const float (&sum)[BN / 8][4], uint32_t staging, scalar_t* out, int row, int column, int rows, int columns) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int panel = 0; panel < BN / 64; panel++) {
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
            const float (&low)[4] = sum[panel * 8 + n], (&high)[4] = sum[panel * 8 + n + 1];
            // Matrices of 8 x 8: rows 0-7 and 8-15 of columns 8n and on, then of the next 8. A lane has one row's address.
            store_matrices(staging + lane % 16 * 128 + ((n + lane / 16) ^ lane % 8) * 16,
                           pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]), pack(high[2], high[3]));
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int r = i * 4 + lane / 8, at = column + panel * 64 + lane % 8 * 8;
            const uint4 piece = load_piece(staging + r * 128 + (lane % 8 ^ r % 8) * 16);
            if (row + r < rows && at < columns)   // N % 8 == 0: a piece is valid or is not
                *reinterpret_cast<uint4*>(out + int64_t(row + r) * columns + at) = piece;
        }
        __syncwarp();
    }
}

// The threads that multiply.
__device__ __forceinline__ void meet() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

// Where the depth is split a block has one tile. All but the last of its parts leave their sums in scratch memory, as the
// threads hold them, and count themselves off; the last one waits for them and adds them up, in their order, by way of the
// shared memory of the stages. Blocks with a smaller z are there first: who waits never keeps out whom it waits for.
constexpr int COUNT_BYTES = 4096;   // of counts, one a tile: at most as many as SMs

template <int BN>
__device__ __forceinline__ bool gather_parts(float (&sum)[BN / 8][4], uint32_t room, void* workspace) {
    uint32_t* count = static_cast<uint32_t*>(workspace) + blockIdx.x;
    float4* part = reinterpret_cast<float4*>(static_cast<char*>(workspace) + COUNT_BYTES) + threadIdx.x;
    const auto tile = [&](int z) { return part + (int64_t(z) * gridDim.x + blockIdx.x) * (BM * BN / 4); };
    const int last = gridDim.z - 1;
    if (blockIdx.z < last) {
        float4* to = tile(blockIdx.z);
#pragma unroll
        for (int n = 0; n < BN / 8; n++) to[n * 256] = make_float4(sum[n][0], sum[n][1], sum[n][2], sum[n][3]);
        meet();
        if (threadIdx.x == 0) release(count);
        return false;
    }
    meet();   // nobody multiplies from `room` any more
    while (acquire(count) < last) {}
    __syncwarp();
    room += threadIdx.x * 16;   // each thread for itself: registers would not do for so much under way
#pragma unroll 1
    for (int z = 0; z < last; z++) {
        const float4* from = tile(z);
#pragma unroll
        for (int n = 0; n < BN / 8; n++)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(room + n * 4096), "l"(from + n * 256) : "memory");
        asm volatile("cp.async.wait_all;" ::: "memory");
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
            float4 value;
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w) : "r"(room + n * 4096) : "memory");
            sum[n][0] += value.x;
            sum[n][1] += value.y;
            sum[n][2] += value.z;
            sum[n][3] += value.w;
        }
    }
    return true;
}

// All tiles of this block.
template <int BN>
__device__ __forceinline__ void multiply_tiles(
    scalar_t* out, int64_t M, int64_t K, int64_t N, void* workspace, const CUtensorMap* x_map, const CUtensorMap* weight_map) {
    constexpr uint32_t HALF_BYTES = BN / 2 * 128, STAGE_BYTES = LEFT_BYTES + 2 * HALF_BYTES;   // of the weights, and all
    constexpr int DEEP = 214784 / STAGE_BYTES;   // stages: as many as fit beside what a tile is stored through
    extern __shared__ uint4 shared[];
    const uint32_t left_at = (uint32_t(__cvta_generic_to_shared(shared)) + 1023) / 1024 * 1024;  // where the swizzle repeats
    const uint32_t staging_at = left_at + DEEP * STAGE_BYTES;
    const uint32_t full = staging_at + 8 * 2048, empty = full + 8 * DEEP;   // barriers, 8 bytes each

    const int row_tiles = (int(M) + BM * CLUSTER - 1) / (BM * CLUSTER), column_tiles = (int(N) + BN - 1) / BN;
    const int tiles = row_tiles * column_tiles, slices = (int(K) + 63) / 64;
    const int per_part = (slices + int(gridDim.z) - 1) / int(gridDim.z);   // with several parts a block has one tile
    const int slice_begin = int(blockIdx.z) * per_part, slice_end = min(slices, slice_begin + per_part);
    const int rank = blockIdx.x % CLUSTER, first = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;

    if (threadIdx.x == 256) {
        prefetch_map(x_map);
        prefetch_map(weight_map);
    }
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int stage = 0; stage < DEEP; stage++) {
            barrier_init(full + 8 * stage, 1);
            barrier_init(empty + 8 * stage, 8 * CLUSTER);   // one arrival per consumer warp of the cluster
        }
        barrier_fence();
    }
    cluster_barrier();

    const int group = threadIdx.x / 128;
    int stage = 0, parity = 0;
    if (group == 2) {
        registers_down<40>();
        if (threadIdx.x == 256) {
#pragma unroll 1
            for (int index = first; index < tiles; index += clusters) {
                const Tile tile(index, row_tiles, column_tiles);
                const int row = (tile.row * CLUSTER + rank) * BM, column = tile.column * BN;
#pragma unroll 1
                for (int slice = slice_begin; slice < slice_end; slice++) {
                    const uint32_t to = left_at + stage * STAGE_BYTES, barrier = full + 8 * stage;
                    // A fresh barrier counts as having finished a phase of parity 1: the first round passes.
                    barrier_wait(empty + 8 * stage, parity ^ 1);
                    barrier_expect(barrier, STAGE_BYTES);
                    tma_load(to, x_map, slice * 64, row, barrier);
                    tma_load_all(to + LEFT_BYTES + rank * (BN / CLUSTER * 128), weight_map, slice * 64,
                                 column + rank * (BN / CLUSTER), barrier);
                    stage = stage + 1 == DEEP ? 0 : stage + 1;
                    if (stage == 0) parity ^= 1;
                }
            }
        }
    } else {
        registers_up<232>();
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;   // 16 rows a warp, 64 a warpgroup
        float sum[BN / 8][4] = {};
#pragma unroll 1
        for (int index = first; index < tiles; index += clusters) {
            const Tile tile(index, row_tiles, column_tiles);
            int before = 0;
#pragma unroll 1
            for (int slice = slice_begin; slice < slice_end; slice++) {
                const uint32_t at = left_at + stage * STAGE_BYTES;
                barrier_wait(full + 8 * stage, parity);
                multiply(sum, at + group * (64 * 128), at + LEFT_BYTES, slice > slice_begin);
                if (slice > slice_begin) {   // the slice before has been multiplied when only this one is pending
                    wgmma_wait<1>();
                    if (lane < CLUSTER) barrier_arrive(empty + 8 * before, lane);
                }
                before = stage;
                stage = stage + 1 == DEEP ? 0 : stage + 1;
                if (stage == 0) parity ^= 1;
            }
            wgmma_wait<0>();
            arrived(sum);
            if (lane < CLUSTER) barrier_arrive(empty + 8 * before, lane);
            const int row = (tile.row * CLUSTER + rank) * BM + warp * 16, column = tile.column * BN;
            if (gridDim.z == 1 || gather_parts<BN>(sum, left_at, workspace))
                store<BN>(sum, staging_at + warp * 2048, out, row, column, int(M), int(N));
        }
    }
    cluster_barrier();   // nobody leaves while a neighbour may still write to its shared memory
}

}  // namespace
#endif

extern "C" __global__ void __launch_bounds__(288, 1) streamed(
    scalar_t* out, const scalar_t* x, const scalar_t* weight, int64_t M, int64_t K, int64_t N, void* workspace,
    const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap map_128,
    const __grid_constant__ CUtensorMap map_192, const __grid_constant__ CUtensorMap map_256) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    using namespace few;
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
            fetcher.fetch<Rows>({weight}, part.first(tile), part.rows(tile), depth);
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
        for (int i = threadIdx.x; i < TOKENS * 32; i += 32 * WARPS) {
            const int row = i % 32, token = i / 32;
            if (row < rows && token0 + token < tokens)
                out[(token0 + token) * N + n0 + row] = scalar_t(total(share, token, row));
        }
        together();   // before the shares are written again
    }
#else
    __trap();  // compiled for another architecture, where the constraints above never let it run
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) linear_128(
    scalar_t* out, const scalar_t* x, const scalar_t* weight, int64_t M, int64_t K, int64_t N, void* workspace,
    const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap map_128,
    const __grid_constant__ CUtensorMap map_192, const __grid_constant__ CUtensorMap map_256) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    multiply_tiles<128>(out, M, K, N, workspace, &x_map, &map_128);
#else
    __trap();  // compiled for another architecture, where the constraints above never let it run
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) linear_192(
    scalar_t* out, const scalar_t* x, const scalar_t* weight, int64_t M, int64_t K, int64_t N, void* workspace,
    const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap map_128,
    const __grid_constant__ CUtensorMap map_192, const __grid_constant__ CUtensorMap map_256) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    multiply_tiles<192>(out, M, K, N, workspace, &x_map, &map_192);
#else
    __trap();  // compiled for another architecture, where the constraints above never let it run
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) linear_256(
    scalar_t* out, const scalar_t* x, const scalar_t* weight, int64_t M, int64_t K, int64_t N, void* workspace,
    const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap map_128,
    const __grid_constant__ CUtensorMap map_192, const __grid_constant__ CUtensorMap map_256) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    multiply_tiles<256>(out, M, K, N, workspace, &x_map, &map_256);
#else
    __trap();  // compiled for another architecture, where the constraints above never let it run
#endif
}

extern "C" __global__ void __launch_bounds__(1024) clear(
    scalar_t* out, const scalar_t* x, const scalar_t* weight, int64_t M, int64_t K, int64_t N, void* workspace,
    const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap map_128,
    const __grid_constant__ CUtensorMap map_192, const __grid_constant__ CUtensorMap map_256) {
    static_cast<uint32_t*>(workspace)[threadIdx.x] = 0;
}
