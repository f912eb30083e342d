// 3: Hopper: attention by wgmma fed by TMA, as in the third kernel of that task, writes the joined heads straight into
// out in the task's dtype, as the eager pair does; the second launch normalises out in place, ROW_THREADS to a row.
// Needs sm_90a, float16 or bfloat16 and D in {64, 128}; any S and H. Can lose to 2 where the grid of 64*CONSUMERS-row
// tiles is too small to fill the GPU. Elsewhere than on Hopper the constraints exclude it.
//
// launch attention: grid(B*H*cdiv(S, 64*CONSUMERS)) block(128*CONSUMERS + 128) smem((64*CONSUMERS + 2*STAGES*TILE_N)*D*2 + 1280)
// launch normalise: grid(cdiv(B*S, 128//ROW_THREADS)) block(128)
// tensormap q_map: q view(B*H, S, D) box(1, 64*CONSUMERS, 64) swizzle(128B)
// tensormap k_map: k view(B*H, S, D) box(1, TILE_N, 64) swizzle(128B)
// tensormap v_map: v view(B*H, S, D) box(1, TILE_N, 64) swizzle(128B)
// static: H D causal
// tune-if: smem_optin > 200000
// tune-if: (64*CONSUMERS + 2*STAGES*TILE_N)*D*2 + 1280 <= smem_optin
// tune-if: CONSUMERS < 3 or D + TILE_N <= 192
#if DTYPE_BFLOAT16
#define WGMMA_TYPES "bf16.bf16"
#else
#define WGMMA_TYPES "f16.f16"
#endif
struct scalar_t;  // only ever moved in 16-byte pieces of 8: without the headers of its operators the compiler is faster

#ifndef CONSUMERS
#define CONSUMERS 3  // tune: 1 2 3
#endif
#ifndef TILE_N
#define TILE_N 64    // tune: 64 128
#endif
#ifndef STAGES
#define STAGES 3     // tune: 1 2 3
#endif

#ifndef ROW_THREADS
#define ROW_THREADS 128  // tune: 32 64 128
#endif

#if DTYPE_FLOAT32
#error "3_wgmma serves float16 and bfloat16"
#endif

namespace {

// Two values in one register. Through PTX: the headers' conversions cost the compiler a tenth of this file's time.
__device__ __forceinline__ uint32_t pack(float low, float high) {
    uint32_t pair;
#if DTYPE_BFLOAT16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
    return pair;
}

__device__ __forceinline__ void unpack(float& low, float& high, uint32_t pair) {
#if DTYPE_BFLOAT16
    low = __uint_as_float(pair << 16), high = __uint_as_float(pair & 0xffff0000u);
#else
    asm("{\n.reg .f16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;\n}"
        : "=f"(low), "=f"(high) : "r"(pair));
#endif
}

}  // namespace

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

// What this thread wrote to shared memory becomes visible to wgmma.
__device__ __forceinline__ void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

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

__device__ __forceinline__ void group_barrier(int group) {
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}

#define VALUES4(x, c, n) x(c[n][0]), x(c[n][1]), x(c[n][2]), x(c[n][3])
#define VALUES16(x, c, n) VALUES4(x, c, n), VALUES4(x, c, n + 1), VALUES4(x, c, n + 2), VALUES4(x, c, n + 3)
#define VALUES32(x, c) VALUES16(x, c, 0), VALUES16(x, c, 4)
#define VALUES64(x, c) VALUES32(x, c), VALUES16(x, c, 8), VALUES16(x, c, 12)
#define REGISTERS32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TEXT(x) #x
#define NUMBER(x) TEXT(x)

// All instructions of a product stand in one asm: with its 32 or 64 accumulators among the operands, each one by itself
// would cost the compiler as much as all of them together.

// score[64xTILE_N] = Q K^T, both in shared memory with their D columns running along the row.
#define KEYS_STEP(keep) \
    "wgmma.mma_async.sync.aligned.m64n" NUMBER(TILE_N) "k16.f32." WGMMA_TYPES \
    " {" SCORES "}, q, k, " keep ", 1, 1, 0, 0;\n"
#define MOVE(q_step, k_step) "add.s64 q, q, " q_step ";\nadd.s64 k, k, " k_step ";\n"
#define NEXT_KEYS MOVE("2", "2") KEYS_STEP("yes")
#define KEYS_PANEL(keep) KEYS_STEP(keep) NEXT_KEYS NEXT_KEYS NEXT_KEYS
__device__ __forceinline__ void multiply_keys(float (&score)[TILE_N / 8][4], uint32_t query, uint32_t key) {
#if TILE_N == 64
#define SCORES REGISTERS32
#define SCORE_OPERANDS VALUES32("=f", score)
#define OPENING "mov.b64 q, %32;\nmov.b64 k, %33;\n"
#else
#define SCORES REGISTERS64
#define SCORE_OPERANDS VALUES64("=f", score)
#define OPENING "mov.b64 q, %64;\nmov.b64 k, %65;\n"
#endif
    wgmma_fence();
    asm volatile(
        "{\n.reg .pred no, yes;\n.reg .b64 q, k;\nsetp.ne.b32 no, 0, 0;\nsetp.eq.b32 yes, 0, 0;\n" OPENING
        KEYS_PANEL("no")
#if STATIC_D == 128
        MOVE("8 * 64 * " NUMBER(CONSUMERS) " - 6", "8 * " NUMBER(TILE_N) " - 6") KEYS_PANEL("yes")
#endif
        "}\n"
        : SCORE_OPERANDS : "l"(descriptor(query, 16)), "l"(descriptor(key, 16)));
    wgmma_commit();
}

// acc[64xD] = (keep ? acc : 0) + P V, P in registers, V in shared memory with its TILE_N rows one after the other; 64 of them at a time.
#define VALUES_STEP(p, keep) \
    "wgmma.mma_async.sync.aligned.m64n" NUMBER(STATIC_D) "k16.f32." WGMMA_TYPES \
    " {" SUMS "}, {" p "}, v, " keep ", 1, 1, 1;\nadd.s64 v, v, 128;\n"
__device__ __forceinline__ void multiply_values(
    float (&acc)[D_ / 8][4], const uint32_t (&prob)[TILE_N / 16][4], uint32_t value, int keep) {
#if STATIC_D == 64
#define SUMS REGISTERS32
#define SUM_OPERANDS VALUES32("+f", acc)
#define STEPS \
    "mov.b64 v, %48;\nsetp.ne.b32 keep, %49, 0;\n" VALUES_STEP("%32, %33, %34, %35", "keep") VALUES_STEP("%36, %37, %38, %39", "yes") \
    VALUES_STEP("%40, %41, %42, %43", "yes") VALUES_STEP("%44, %45, %46, %47", "yes")
#else
#define SUMS REGISTERS64
#define SUM_OPERANDS VALUES64("+f", acc)
#define STEPS \
    "mov.b64 v, %80;\nsetp.ne.b32 keep, %81, 0;\n" VALUES_STEP("%64, %65, %66, %67", "keep") VALUES_STEP("%68, %69, %70, %71", "yes") \
    VALUES_STEP("%72, %73, %74, %75", "yes") VALUES_STEP("%76, %77, %78, %79", "yes")
#endif
    wgmma_fence();
#pragma unroll
    for (int n = 0; n < TILE_N / 16; n += 4)
        asm volatile(
            "{\n.reg .pred keep, yes;\n.reg .b64 v;\nsetp.eq.b32 yes, 0, 0;\n" STEPS "}\n"
            : SUM_OPERANDS
            : VALUES16("r", prob, n), "l"(descriptor(value + n * 16 * 128, TILE_N * 128)), "r"(n > 0 ? 1 : keep));
    wgmma_commit();
}

// Registers that a wgmma wrote may be read from here on: keeps the compiler from moving reads up past the wait.
__device__ __forceinline__ void scores_arrived(float (&score)[TILE_N / 8][4]) {
#if TILE_N == 64
    asm volatile("" : VALUES32("+f", score) :: "memory");
#else
    asm volatile("" : VALUES64("+f", score) :: "memory");
#endif
}

__device__ __forceinline__ void sums_arrived(float (&acc)[D_ / 8][4]) {
#if STATIC_D == 64
    asm volatile("" : VALUES32("+f", acc) :: "memory");
#else
    asm volatile("" : VALUES64("+f", acc) :: "memory");
#endif
}

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
__device__ __forceinline__ void mask(float (&score)[TILE_N / 8][4], int first_key, int row, int length) {
    const int warp_row = row - int(threadIdx.x) % 32 / 4, first = first_key + int(threadIdx.x) % 4 * 2;
    if (first_key + TILE_N <= length && !(STATIC_CAUSAL && first_key + TILE_N > warp_row + 1)) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int visible = (STATIC_CAUSAL ? min(length, row + half * 8 + 1) : length) - first;
#pragma unroll
        for (int n = 0; n < TILE_N / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (n * 8 + i >= visible) score[n][2 * half + i] = __int_as_float(0xff800000);
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

}  // namespace
#endif

extern "C" __global__ void __launch_bounds__(128 * CONSUMERS + 128, 1) attention(
    scalar_t* out, const scalar_t* q, const scalar_t* k, const scalar_t* v,
    const scalar_t* weight, const scalar_t* bias,
    int64_t B, int64_t H, int64_t S, int64_t D, float scale, int causal, float eps, void* workspace,
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
#pragma unroll 1
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
        // negative scale changes the sign of Q, and 0 becomes tiny, for -inf * 0 is NaN.
        const float factor = fmaxf(fabsf(scale) * 1.4426950408889634f, 1e-30f);
        float score[TILE_N / 8][4], acc[D_ / 8][4], shrink[2];
        float top[2] = {__int_as_float(0xff800000), __int_as_float(0xff800000)}, sum[2] = {0.f, 0.f};
        uint32_t prob[TILE_N / 16][4] = {};
#pragma unroll
        for (int n = 0; n < D_ / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[n][i] = 0.f;

        barrier_wait(q_full, 0);
        if (scale < 0.f) {
            uint4* own_rows = reinterpret_cast<uint4*>(
                reinterpret_cast<unsigned char*>(shared) + (query - shared_address(shared)));
#pragma unroll 1
            for (int i = threadIdx.x % 128; i < PANELS * 512; i += 128) {
                uint4& piece = own_rows[i / 512 * (TILE_M * 8) + i % 512];
                piece.x ^= 0x80008000u, piece.y ^= 0x80008000u, piece.z ^= 0x80008000u, piece.w ^= 0x80008000u;
            }
            async_fence();
            group_barrier(group);
        }
        // Each round multiplies the next tile's scores, and meanwhile the values of the tile before by its
        // probabilities. The first has no tile before, and multiplies whatever there is: the second starts acc anew.
        int stage = 0, parity = 0, before = 0;
#pragma unroll 1
        for (int tile = 0; tile < own; tile++) {
            // The producer loads V of the tile before first.
            if (tile > 0) barrier_wait(v_full + 8 * before, stage == 0 ? parity ^ 1 : parity);
            barrier_wait(k_full + 8 * stage, parity);
            multiply_keys(score, query, k_at + stage * TILE_BYTES);
            multiply_values(acc, prob, v_at + before * TILE_BYTES, tile > 1);
            wgmma_wait<1>();
            scores_arrived(score);
            if (lane == 0) barrier_arrive(k_empty + 8 * stage);
            mask(score, tile * TILE_N, row, length);
            softmax(score, factor, top, sum, shrink);
            wgmma_wait<0>();
            sums_arrived(acc);
            if (tile > 0 && lane == 0) barrier_arrive(v_empty + 8 * before);
#pragma unroll
            for (int n = 0; n < D_ / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) acc[n][i] *= shrink[i / 2];
            to_operand(prob, score);
            before = stage;
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            if (stage == 0) parity ^= 1;
        }
        barrier_wait(v_full + 8 * before, stage == 0 ? parity ^ 1 : parity);
        multiply_values(acc, prob, v_at + before * TILE_BYTES, own > 1);
        wgmma_wait<0>();
        sums_arrived(acc);
        if (lane == 0) barrier_arrive(v_empty + 8 * before);
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
            const float inverse = __fdividef(1.f, total);  // total >= 1: the row maximum is in it
            const int r = lane / 4 + half * 8;
#pragma unroll
            for (int n = 0; n < D_ / 8; n++)
                *reinterpret_cast<uint32_t*>(staged(staging, r, n) + lane % 4 * 4) =
                    pack(acc[n][2 * half] * inverse, acc[n][2 * half + 1] * inverse);
        }
        __syncwarp();
#pragma unroll 1
        for (int i = lane; i < 16 * D_ / 8; i += 32) {
            const int r = i / (D_ / 8), chunk = i % (D_ / 8), at = first_row + warp_row + r;
            if (at < length)
                reinterpret_cast<uint4*>(out)[((int64_t(head / STATIC_H) * S + at) * STATIC_H + head % STATIC_H) * (D_ / 8) + chunk] =
                    *reinterpret_cast<const uint4*>(staged(staging, r, chunk));
        }
    }
#else
    __trap();  // compiled for another architecture, where the constraints above never let it run
#endif
}

namespace {

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
constexpr int PIECES = (COLUMNS / 8 + ROW_THREADS - 1) / ROW_THREADS;  // 16-byte pieces of a row per thread

__device__ __forceinline__ void unpack(float (&x)[8], const uint4& piece) {
    unpack(x[0], x[1], piece.x);
    unpack(x[2], x[3], piece.y);
    unpack(x[4], x[5], piece.z);
    unpack(x[6], x[7], piece.w);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) normalise(
    scalar_t* out, const scalar_t* q, const scalar_t* k, const scalar_t* v,
    const scalar_t* weight, const scalar_t* bias,
    int64_t B, int64_t H, int64_t S, int64_t D, float scale, int causal, float eps, void* workspace,
    const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
    const __grid_constant__ CUtensorMap v_map) {
    __shared__ float part[2][4];
    const int lane = threadIdx.x % ROW_THREADS;
    const int64_t row = int64_t(blockIdx.x) * (128 / ROW_THREADS) + threadIdx.x / ROW_THREADS;
    const bool active = row < B * S;  // the others keep the barriers company
    uint4* pieces = reinterpret_cast<uint4*>(out) + (active ? row : 0) * (COLUMNS / 8);

    float x[PIECES][8];  // converted once
    float sum = 0.f;
#pragma unroll
    for (int p = 0; p < PIECES; p++)
        if (p * ROW_THREADS + lane < COLUMNS / 8) {
            unpack(x[p], pieces[p * ROW_THREADS + lane]);
#pragma unroll
            for (int i = 0; i < 8; i++) sum += x[p][i];
        }
    const float mean = row_sum(sum, part[0]) * (1.f / COLUMNS);
    // From registers again: E[x^2] - E[x]^2 cancels where the mean is large.
    float squares = 0.f;
#pragma unroll
    for (int p = 0; p < PIECES; p++)
        if (p * ROW_THREADS + lane < COLUMNS / 8)
#pragma unroll
            for (int i = 0; i < 8; i++) {
                x[p][i] -= mean;
                squares = fmaf(x[p][i], x[p][i], squares);
            }
    const float inverse = rsqrtf(row_sum(squares, part[1]) * (1.f / COLUMNS) + eps);

#pragma unroll
    for (int p = 0; p < PIECES; p++)
        if (active && p * ROW_THREADS + lane < COLUMNS / 8) {
            float w[8], b[8];
            unpack(w, reinterpret_cast<const uint4*>(weight)[p * ROW_THREADS + lane]);
            unpack(b, reinterpret_cast<const uint4*>(bias)[p * ROW_THREADS + lane]);
#pragma unroll
            for (int i = 0; i < 8; i++) x[p][i] = fmaf(x[p][i] * inverse, w[i], b[i]);
            pieces[p * ROW_THREADS + lane] =
                make_uint4(pack(x[p][0], x[p][1]), pack(x[p][2], x[p][3]), pack(x[p][4], x[p][5]), pack(x[p][6], x[p][7]));
        }
}
