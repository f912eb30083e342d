// 3: Hopper: wgmma fed by TMA. One producer warpgroup keeps STAGES tiles of K and of V in flight, CONSUMERS warpgroups
// take 64 query rows each; the scores of the next tile are multiplied while the softmax of this one and P*V are under
// way, as FlashAttention-3 does. Needs sm_90a, float16 or bfloat16 and D in {64, 128}; any S. Can lose to 2 where
// the grid of 64*CONSUMERS-row tiles is too small to fill the GPU. Elsewhere than on Hopper the constraints exclude it.
//
// launch attention: grid(B*H*cdiv(S, 64*CONSUMERS)) block(128*CONSUMERS + 128) smem((64*CONSUMERS + 2*STAGES*TILE_N)*D*2 + 1280)
// tensormap q_map: q view(B*H, S, D) box(1, 64*CONSUMERS, 64) swizzle(128B)
// tensormap k_map: k view(B*H, S, D) box(1, TILE_N, 64) swizzle(128B)
// tensormap v_map: v view(B*H, S, D) box(1, TILE_N, 64) swizzle(128B)
// static: D causal
// tune-if: smem_optin > 200000
// tune-if: (64*CONSUMERS + 2*STAGES*TILE_N)*D*2 + 1280 <= smem_optin
// tune-if: CONSUMERS < 3 or D + TILE_N <= 192
#if DTYPE_BFLOAT16
#include <cuda_bf16.h>
#define WGMMA_TYPES "bf16.bf16"
#else
#include <cuda_fp16.h>
#define WGMMA_TYPES "f16.f16"
#endif

#ifndef CONSUMERS
#define CONSUMERS 2  // tune: 1 2 3
#endif
#ifndef TILE_N
#define TILE_N 128   // tune: 64 128
#endif
#ifndef STAGES
#define STAGES 2     // tune: 1 2 3
#endif

#if DTYPE_FLOAT32
#error "3_wgmma serves float16 and bfloat16"
#endif

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
namespace {

constexpr int D_ = STATIC_D;
constexpr int TILE_M = 64 * CONSUMERS;
constexpr int PANELS = D_ / 64;               // tiles lie in panels of 64 columns: 128 bytes, the width of the swizzle
constexpr uint32_t TILE_BYTES = TILE_N * D_ * 2;
static_assert(D_ == 64 || D_ == 128, "D must be 64 or 128");

__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
#if DTYPE_BFLOAT16
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
#else
    const __half2 pair = __floats2half2_rn(low, high);
#endif
    return *reinterpret_cast<const uint32_t*>(&pair);
}

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

// A box at (column, row, head) of the tensor; what lies past its end arrives as zeros.
__device__ __forceinline__ void tma_load(
    uint32_t to, const CUtensorMap* map, int column, int row, int head, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];"
        ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(head), "r"(barrier) : "memory");
}

// Shared memory as wgmma sees it: 128-byte swizzle, groups of 8 rows 1024 bytes apart, panels `panel` bytes apart
// (which matters only to the transposed operand, whose columns run over several of them).
__device__ __forceinline__ uint64_t descriptor(uint32_t at, uint32_t panel) {
    return uint64_t((at & 0x3ffff) >> 4) | uint64_t(panel >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Registers that a wgmma wrote may be read from here on: keeps the compiler from moving reads up past the wait.
template <int BLOCKS>
__device__ __forceinline__ void arrived(float (&c)[BLOCKS][4]) {
#pragma unroll
    for (int n = 0; n < BLOCKS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("" : "+f"(c[n][i])::"memory");
}

template <int REGISTERS>
__device__ __forceinline__ void registers_up() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }

template <int REGISTERS>
__device__ __forceinline__ void registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

__device__ __forceinline__ void group_barrier(int group) {
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}

#define VALUES4(c, n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define VALUES16(c, n) VALUES4(c, n), VALUES4(c, n + 1), VALUES4(c, n + 2), VALUES4(c, n + 3)
#define VALUES32(c, n) VALUES16(c, n), VALUES16(c, n + 4)

// c[64xN] = (keep ? c : 0) + A B^T, both in shared memory with their 16 columns running along the row
#if TILE_N == 64
__device__ __forceinline__ void multiply(float (&c)[8][4], uint64_t a, uint64_t b, int keep) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." WGMMA_TYPES " {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
        : VALUES32(c, 0) : "l"(a), "l"(b), "r"(keep));
}
#else
__device__ __forceinline__ void multiply(float (&c)[16][4], uint64_t a, uint64_t b, int keep) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." WGMMA_TYPES " {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
        : VALUES32(c, 0), VALUES32(c, 8) : "l"(a), "l"(b), "r"(keep));
}
#endif

// c[64xN] += A B, A in registers, B in shared memory with its 16 rows one after the other
#if STATIC_D == 64
__device__ __forceinline__ void multiply_transposed(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." WGMMA_TYPES " {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
        : VALUES32(c, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#else
__device__ __forceinline__ void multiply_transposed(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." WGMMA_TYPES " {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
        : VALUES32(c, 0), VALUES32(c, 8) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#endif

__device__ __forceinline__ void load_tile(uint32_t to, const CUtensorMap* map, int row, int head, uint32_t barrier) {
    for (int panel = 0; panel < PANELS; panel++)
        tma_load(to + panel * TILE_N * 128, map, panel * 64, row, head, barrier);
}

// One thread's share of two rows: its scores become probabilities relative to the new maximum; returns what everything
// from before must be multiplied by.
template <int BLOCKS>
__device__ __forceinline__ void softmax(
    float (&score)[BLOCKS][4], float factor, float (&top)[2], float (&sum)[2], float (&shrink)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float peak = fmaxf(score[0][2 * half], score[0][2 * half + 1]);
#pragma unroll
        for (int n = 1; n < BLOCKS; n++) peak = fmaxf(peak, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
        // top is kept as the rounded product, so that rounding is the same in every tile's exponent.
        peak = fmaxf(top[half], peak * factor);
        const float zero = peak == __int_as_float(0xff800000) ? 0.f : peak;  // nothing seen yet: avoid inf - inf
        shrink[half] = fast_exp2(top[half] - zero);
        top[half] = peak;
        float part = 0.f;
#pragma unroll
        for (int n = 0; n < BLOCKS; n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                score[n][i] = fast_exp2(fmaf(score[n][i], factor, -zero));
                part += score[n][i];
            }
        sum[half] = fmaf(sum[half], shrink[half], part);
    }
}

// A thread holds columns 2*(lane%4) and the next, of rows lane/4 (i = 0, 1) and lane/4 + 8 (i = 2, 3).
template <int BLOCKS>
__device__ __forceinline__ void mask(float (&score)[BLOCKS][4], int first_key, int row, int length, bool negative) {
    const int column = threadIdx.x % 4 * 2;
    if (negative) {
#pragma unroll
        for (int n = 0; n < BLOCKS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) score[n][i] = -score[n][i];
    }
    const int end = first_key + 8 * BLOCKS, warp_row = row - int(threadIdx.x) % 32 / 4;
    if (end > length || (STATIC_CAUSAL && end > warp_row + 1)) {
#pragma unroll
        for (int n = 0; n < BLOCKS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = first_key + n * 8 + column + i % 2;
                if (key >= length || (STATIC_CAUSAL && key > row + i / 2 * 8)) score[n][i] = __int_as_float(0xff800000);
            }
    }
}

// The accumulator's layout of two 8-column blocks is the A operand's layout of one 16-column block.
__device__ __forceinline__ void to_operand(uint32_t (&prob)[TILE_N / 16][4], const float (&score)[TILE_N / 8][4]) {
#pragma unroll
    for (int n = 0; n < TILE_N / 16; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            prob[n][i] = pack(score[2 * n + i / 2][i % 2 * 2], score[2 * n + i / 2][i % 2 * 2 + 1]);
}

// Where a row's 16-byte piece lies in the Q tile, swizzled as TMA would.
__device__ __forceinline__ unsigned char* staged(unsigned char* tile, int row, int chunk) {
    return tile + chunk / 8 * (TILE_M * 128) + row * 128 + (chunk % 8 ^ row % 8) * 16;
}

__device__ __forceinline__ void multiply_keys(float (&score)[TILE_N / 8][4], uint32_t query, uint32_t key) {
    wgmma_fence();
#pragma unroll
    for (int d = 0; d < D_ / 16; d++)
        multiply(score, descriptor(query + d / 4 * (TILE_M * 128) + d % 4 * 32, 16),
                 descriptor(key + d / 4 * (TILE_N * 128) + d % 4 * 32, 16), d > 0);
    wgmma_commit();
}

__device__ __forceinline__ void multiply_values(
    float (&acc)[D_ / 8][4], const uint32_t (&prob)[TILE_N / 16][4], uint32_t value) {
    wgmma_fence();
#pragma unroll
    for (int n = 0; n < TILE_N / 16; n++)
        multiply_transposed(acc, prob[n], descriptor(value + n * 16 * 128, TILE_N * 128));
    wgmma_commit();
}

}  // namespace
#endif

extern "C" __global__ void __launch_bounds__(128 * CONSUMERS + 128, 1) attention(
    scalar_t* out, const scalar_t* q, const scalar_t* k, const scalar_t* v,
    int64_t B, int64_t H, int64_t S, int64_t D, float scale, int causal, void* workspace,
    const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
    const __grid_constant__ CUtensorMap v_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ uint4 shared[];
    const uint32_t q_at = (shared_address(shared) + 1023) / 1024 * 1024;  // the swizzle repeats every 1024 bytes
    const uint32_t k_at = q_at + TILE_M * D_ * 2;
    const uint32_t v_at = k_at + STAGES * TILE_BYTES;
    const uint32_t q_full = v_at + STAGES * TILE_BYTES;
    const uint32_t k_full = q_full + 8, k_empty = k_full + 8 * STAGES;  // barriers, 8 bytes each
    const uint32_t v_full = k_empty + 8 * STAGES, v_empty = v_full + 8 * STAGES;

    const int length = int(S), row_tiles = (length + TILE_M - 1) / TILE_M;
    // Causal: the row tiles with most keys of all heads first, so that short blocks fill the tail. Otherwise neighbours
    // in time read the same head, which the L2 cache then serves.
    const int heads = int(B * H);
    const int head = STATIC_CAUSAL ? int(blockIdx.x) % heads : int(blockIdx.x) / row_tiles;
    const int row_tile = STATIC_CAUSAL ? row_tiles - 1 - int(blockIdx.x) / heads : int(blockIdx.x) % row_tiles;
    const int first_row = row_tile * TILE_M;
    const int tiles = ((STATIC_CAUSAL ? min(length, first_row + TILE_M) : length) + TILE_N - 1) / TILE_N;

    if (threadIdx.x == 0) {
        barrier_init(q_full, 1);
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_init(k_full + 8 * stage, 1);
            barrier_init(v_full + 8 * stage, 1);
            barrier_init(k_empty + 8 * stage, 4 * CONSUMERS);  // one arrival per warp
            barrier_init(v_empty + 8 * stage, 4 * CONSUMERS);
        }
        barrier_fence();
    }
    __syncthreads();

    const int group = threadIdx.x / 128;
    if (group == CONSUMERS) {
        if (CONSUMERS > 1) registers_down<CONSUMERS == 3 ? 32 : 24>();
        if (threadIdx.x % 128 == 0) {
            barrier_expect(q_full, TILE_M * D_ * 2);
            for (int panel = 0; panel < PANELS; panel++)
                tma_load(q_at + panel * TILE_M * 128, &q_map, panel * 64, first_row, head, q_full);
            for (int tile = 0; tile < tiles; tile++) {
                const int stage = tile % STAGES, parity = tile / STAGES % 2;
                // A fresh barrier counts as having finished a phase of parity 1: the first round passes.
                barrier_wait(k_empty + 8 * stage, parity ^ 1);
                barrier_expect(k_full + 8 * stage, TILE_BYTES);
                load_tile(k_at + stage * TILE_BYTES, &k_map, tile * TILE_N, head, k_full + 8 * stage);
                barrier_wait(v_empty + 8 * stage, parity ^ 1);
                barrier_expect(v_full + 8 * stage, TILE_BYTES);
                load_tile(v_at + stage * TILE_BYTES, &v_map, tile * TILE_N, head, v_full + 8 * stage);
            }
        }
    } else {
        if (CONSUMERS > 1) registers_up<CONSUMERS == 3 ? 160 : 240>();  // one alone may have 255 from the start
        const int lane = threadIdx.x % 32;
        const int warp_row = int(threadIdx.x) / 32 * 16;  // within the tile: 16 rows a warp, 64 a warpgroup
        const int row = first_row + warp_row + lane / 4;
        const uint32_t query = q_at + group * (64 * 128);
        // Tiles that some row of this warpgroup sees; of the others it only hands the buffers back.
        const int own = STATIC_CAUSAL ? min(tiles, (first_row + group * 64 + 64 + TILE_N - 1) / TILE_N) : tiles;

        // exp(scale*s - max) = exp2(factor*s - max'): the factor must be positive for the maximum to be one, so a
        // negative scale changes the sign of the scores, and 0 becomes tiny, for -inf * 0 is NaN.
        const float factor = fmaxf(fabsf(scale) * 1.4426950408889634f, 1e-30f);
        const bool negative = scale < 0.f;
        float score[TILE_N / 8][4], acc[D_ / 8][4], shrink[2];
        float top[2] = {__int_as_float(0xff800000), __int_as_float(0xff800000)}, sum[2] = {0.f, 0.f};
        uint32_t prob[TILE_N / 16][4];
#pragma unroll
        for (int n = 0; n < D_ / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[n][i] = 0.f;

        barrier_wait(q_full, 0);
        barrier_wait(k_full, 0);
        multiply_keys(score, query, k_at);
        wgmma_wait<0>();
        arrived(score);
        if (lane == 0) barrier_arrive(k_empty);
        mask(score, 0, row, length, negative);
        softmax(score, factor, top, sum, shrink);
        to_operand(prob, score);

        int stage = 0, parity = 0;
        for (int tile = 1; tile < own; tile++) {
            const int next = stage + 1 == STAGES ? 0 : stage + 1;
            const int next_parity = next == 0 ? parity ^ 1 : parity;
            barrier_wait(k_full + 8 * next, next_parity);
            multiply_keys(score, query, k_at + next * TILE_BYTES);
            barrier_wait(v_full + 8 * stage, parity);
            multiply_values(acc, prob, v_at + stage * TILE_BYTES);
            wgmma_wait<1>();
            arrived(score);
            if (lane == 0) barrier_arrive(k_empty + 8 * next);
            mask(score, tile * TILE_N, row, length, negative);
            softmax(score, factor, top, sum, shrink);
            wgmma_wait<0>();
            arrived(acc);
            if (lane == 0) barrier_arrive(v_empty + 8 * stage);
#pragma unroll
            for (int n = 0; n < D_ / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) acc[n][i] *= shrink[i / 2];
            to_operand(prob, score);
            stage = next, parity = next_parity;
        }
        barrier_wait(v_full + 8 * stage, parity);
        multiply_values(acc, prob, v_at + stage * TILE_BYTES);
        wgmma_wait<0>();
        arrived(acc);
        if (lane == 0) barrier_arrive(v_empty + 8 * stage);
        for (int tile = own; tile < tiles; tile++) {
            // Only after it is full: an arrival one round early would be counted for the round before.
            barrier_wait(k_full + 8 * (tile % STAGES), tile / STAGES % 2);
            if (lane == 0) barrier_arrive(k_empty + 8 * (tile % STAGES));
            barrier_wait(v_full + 8 * (tile % STAGES), tile / STAGES % 2);
            if (lane == 0) barrier_arrive(v_empty + 8 * (tile % STAGES));
        }

        // Through this warpgroup's own rows of the Q tile, swizzled, so that stores are whole 16-byte pieces.
        unsigned char* staging =
            reinterpret_cast<unsigned char*>(shared) + (q_at - shared_address(shared)) + warp_row * 128;
        group_barrier(group);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[half];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            const float inverse = 1.f / total;
            const int r = lane / 4 + half * 8;
#pragma unroll
            for (int n = 0; n < D_ / 8; n++)
                *reinterpret_cast<uint32_t*>(staged(staging, r, n) + lane % 4 * 4) =
                    pack(acc[n][2 * half] * inverse, acc[n][2 * half + 1] * inverse);
        }
        __syncwarp();
#pragma unroll
        for (int i = lane; i < 16 * D_ / 8; i += 32) {
            const int r = i / (D_ / 8), chunk = i % (D_ / 8), at = first_row + warp_row + r;
            if (at < length)
                *reinterpret_cast<uint4*>(out + (int64_t(head) * S + at) * D_ + chunk * 8) =
                    *reinterpret_cast<const uint4*>(staged(staging, r, chunk));
        }
    }
#else
    __trap();  // compiled for another architecture, where the constraints above never let it run
#endif
}
