// 4: Hopper: wgmma fed by TMA. One block per SM walks over tiles of 128 x BN outputs: a producer warp keeps STAGES slices of
// 64 of the depth in flight, two consumer warpgroups of 64 rows each multiply them, and while they store a tile the next
// one's slices are already on their way. The blocks of a cluster have row tiles of their own and the same weights: each loads
// its share of them for all. Tiles follow each other in bands of GROUP row tiles, so that what runs at once shares its operands.
// Where the tiles would leave more than half of the GPU idle, the depth is split over blocks, at most four times, and a
// second kernel adds the parts up.
//
// 4096 tokens of 11008 to 4096 are 369 GFLOP over 0.2 GB: at least 0.37 ms of an H100's tensor cores. Passed the judge
// (version 7, H100 80GB HBM3, 2026-11-25) with the constants below; milliseconds beside cuBLAS:
//   4096 tokens of 11008 to 4096: 0.472 (0.465)     512 of these: 0.081 (0.072), with BN=128 0.079
//   4096 tokens of 3072 to 768:   0.040 (0.033), with BN=192 and CLUSTER=1 0.036
//   1 and 16 of 11008 to 4096:    0.054 (0.048)     16 of 3072 to 768: 0.020 (0.012)
// What made the difference:
// - Sharing the weights: with CLUSTER=1 and BN=192 the first takes 0.71 ms (0.53 with CLUSTER=2, by a driver), since the L2
//   cache then has to deliver more. CLUSTER=4 takes 0.75 ms with BN=256, presumably since parts of the GPU hold too few SMs for
//   33 clusters of four, and the rest run when all others are done.
// - A neighbour's barrier must be told with mbarrier.arrive of CTA scope. `release.cluster` waits for all memory operations
//   in every slice: the kernel of mlp, which is built like this one, took 2.34 ms with it, 1.39 without.
// - Full waves: 512 tokens have 128 tiles for 132 SMs with BN=128, and 768 outputs as many with BN=192.
//
// Needs sm_90a, 16-bit elements, K % 8 == 0 and N % 8 == 0; any M, but rows come in tiles of 128: 3 is for few tokens.
//
// Scratch memory: the number of parts (256 bytes), then the parts [parts, M, N] as float.
//
// launch linear: grid(CLUSTER*min(sm_count//CLUSTER, cdiv(M, 128*CLUSTER)*cdiv(N, BN)), 1, max(1, min(4, sm_count//(CLUSTER*cdiv(M, 128*CLUSTER)*cdiv(N, BN))))) block(384) smem(214784//((128 + BN)*128)*((128 + BN)*128) + 17664) cluster(CLUSTER, 1, 1)
// launch add_parts: grid(cdiv(M*N, 1024)) block(256) when(min(4, sm_count//(CLUSTER*cdiv(M, 128*CLUSTER)*cdiv(N, BN))) > 1)
// workspace: (256 + 4*M*N*4)*(min(4, sm_count//(CLUSTER*cdiv(M, 128*CLUSTER)*cdiv(N, BN))) > 1)
// tensormap x_map: x box(128, 64) swizzle(128B)
// tensormap weight_map: weight box(BN//max(2, CLUSTER), 64) swizzle(128B)
// tune-if: smem_optin >= 232448
#if DTYPE_BFLOAT16
#include <cuda_bf16.h>
#define WGMMA_TYPES "bf16.bf16"
#else
#include <cuda_fp16.h>
#define WGMMA_TYPES "f16.f16"
#endif

#ifndef BN
#define BN 256      // tune: 128 192 256
#endif
#ifndef CLUSTER
#define CLUSTER 2   // tune: 1 2
#endif

#if DTYPE_FLOAT32
#error "4_wgmma serves float16 and bfloat16"
#endif

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
namespace {

constexpr int BM = 128;
constexpr uint32_t LEFT_BYTES = BM * 128;       // a row of a slice is 64 elements: 128 bytes, the width of the swizzle
constexpr uint32_t HALF_BYTES = BN / 2 * 128;   // of the weights
constexpr uint32_t STAGE_BYTES = LEFT_BYTES + 2 * HALF_BYTES;
constexpr int STAGES = 214784 / STAGE_BYTES;    // as many as fit beside what a tile is stored through
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
#define PRODUCT_OF(width) PRODUCT(width)
PRODUCT_OF(BN)

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

// Of the tile sums, after 256 bytes that hold their number.
__device__ __forceinline__ float* parts(void* workspace) {
    return reinterpret_cast<float*>(static_cast<char*>(workspace) + 256);
}

// This warp's 16 rows of a part of the sum. A lane has two neighbouring columns of two rows, so that four lanes fill 32 bytes.
__device__ __forceinline__ void store_part(
    const float (&sum)[BN / 8][4], float* part, int row, int column, int rows, int columns) {
    const int lane = threadIdx.x % 32, r = row + lane / 4;
#pragma unroll
    for (int n = 0; n < BN / 8; n++) {
        const int at = column + n * 8 + lane % 4 * 2;
        if (at >= columns) continue;   // N % 8 == 0: both columns exist or neither
        if (r < rows) *reinterpret_cast<float2*>(part + int64_t(r) * columns + at) = make_float2(sum[n][0], sum[n][1]);
        if (r + 8 < rows) *reinterpret_cast<float2*>(part + int64_t(r + 8) * columns + at) = make_float2(sum[n][2], sum[n][3]);
    }
}

}  // namespace
#endif

extern "C" __global__ void __launch_bounds__(384, 1) linear(
    scalar_t* out, const scalar_t* x, const scalar_t* weight, int64_t M, int64_t K, int64_t N, void* workspace,
    const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap weight_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ uint4 shared[];
    const uint32_t left_at = (uint32_t(__cvta_generic_to_shared(shared)) + 1023) / 1024 * 1024;  // where the swizzle repeats
    const uint32_t staging_at = left_at + STAGES * STAGE_BYTES;
    const uint32_t full = staging_at + 8 * 2048, empty = full + 8 * STAGES;   // barriers, 8 bytes each

    const int row_tiles = (int(M) + BM * CLUSTER - 1) / (BM * CLUSTER), column_tiles = (int(N) + BN - 1) / BN;
    const int tiles = row_tiles * column_tiles, slices = (int(K) + 63) / 64;
    const int per_part = (slices + int(gridDim.z) - 1) / int(gridDim.z);   // with several parts a block has one tile
    const int slice_begin = int(blockIdx.z) * per_part, slice_end = min(slices, slice_begin + per_part);
    const int rank = blockIdx.x % CLUSTER, first = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;

    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int stage = 0; stage < STAGES; stage++) {
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
                    tma_load(to, &x_map, slice * 64, row, barrier);
                    if (CLUSTER == 1) {
                        tma_load(to + LEFT_BYTES, &weight_map, slice * 64, column, barrier);
                        tma_load(to + LEFT_BYTES + HALF_BYTES, &weight_map, slice * 64, column + BN / 2, barrier);
                    } else {
                        tma_load_all(to + LEFT_BYTES + rank * (BN / CLUSTER * 128), &weight_map, slice * 64,
                                     column + rank * (BN / CLUSTER), barrier);
                    }
                    stage = stage + 1 == STAGES ? 0 : stage + 1;
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
                stage = stage + 1 == STAGES ? 0 : stage + 1;
                if (stage == 0) parity ^= 1;
            }
            wgmma_wait<0>();
            arrived(sum);
            if (lane < CLUSTER) barrier_arrive(empty + 8 * before, lane);
            const int row = (tile.row * CLUSTER + rank) * BM + warp * 16, column = tile.column * BN;
            if (gridDim.z == 1)
                store(sum, staging_at + warp * 2048, out, row, column, int(M), int(N));
            else
                store_part(sum, parts(workspace) + blockIdx.z * M * N, row, column, int(M), int(N));
        }
    }
    if (gridDim.z > 1 && blockIdx.x + blockIdx.z + threadIdx.x == 0) *static_cast<int*>(workspace) = gridDim.z;
    cluster_barrier();   // nobody leaves while a neighbour may still write to its shared memory
#else
    __trap();  // compiled for another architecture, where the constraints above never let it run
#endif
}

// The parts in their order, so that the sum is the same each time.
extern "C" __global__ void __launch_bounds__(256) add_parts(
    scalar_t* out, const scalar_t* x, const scalar_t* weight, int64_t M, int64_t K, int64_t N, void* workspace,
    const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap weight_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    const int64_t i = (int64_t(blockIdx.x) * 256 + threadIdx.x) * 4;
    if (i >= M * N) return;   // N % 8 == 0: four at a time leaves no rest
    const int count = *static_cast<const int*>(workspace);
    const float* part = parts(workspace) + i;
    float4 sum = *reinterpret_cast<const float4*>(part);
#pragma unroll 4
    for (int p = 1; p < count; p++) {
        const float4 value = *reinterpret_cast<const float4*>(part + p * M * N);
        sum = make_float4(sum.x + value.x, sum.y + value.y, sum.z + value.z, sum.w + value.w);
    }
    *reinterpret_cast<uint2*>(out + i) = make_uint2(pack(sum.x, sum.y), pack(sum.z, sum.w));
#else
    __trap();
#endif
}
