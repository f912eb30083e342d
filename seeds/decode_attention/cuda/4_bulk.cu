// 4: as 3, but keys and values come by TMA: one lane of a warp asks for its 16 keys and values of a tile, in boxes of
// 16 rows by 64 columns whose 128-byte swizzle ldmatrix reads without bank conflicts (or, with WIDE, of whole rows,
// read with two in conflict), and an mbarrier per slot says when they are there. So no instruction is spent per 16
// bytes, a slot is asked for again the moment it is read, and keys that do not exist are not read but for the rest of
// the last box, whose values are overwritten by zeros in shared memory.
// The barrier of the grid is waited for after the first tile, when everybody has long arrived, and a cut head is put
// together in one pass over its parts, rather than one for the maxima and one for the sums.
//
// At B=16, Hkv=8, L=4096, D=128 in 16 bits, 15/16 filled: 252 MB, 84 us at the 3.0 TB/s of a copy on an H100.
//
// Needs sm_90 or later, D in {64, 128}, 16-bit elements and H % Hkv == 0; any L. More than 16 query heads per key/value
// head read it more than once. A handful of keys pays for the barrier.
//
// Compiled for sm_90a; not run.
//
// EVICT is the L2 policy of keys and values: 0 normal, 1 evict_first, 2 evict_first where the call reads less than
// EVICT_BELOW MB and normal elsewhere, 3 evict_unchanged. Why: on an H100 whose L2 was full of written lines rather
// than of read ones, 3 of kv_cache without a policy, in an earlier form, took 8 us longer at 128 MB, 252 MB and 1 GB
// alike, and 2, which reads evict-first, -2, 7, 16 and 33 us longer at 128 MB, 252 MB, 470 MB and 1 GB (a driver's
// medians). Evict-first leaves the written lines where they are, which saves writing them back but seems to cost every
// read that follows.
//
// Scratch memory: for each block two cut heads, each with 16 rows of output in fp32, then maximum and sum of each row,
// then a flag.
//
// BULK=0 brings the same by cp.async, which arrives at the same barriers: to tell what TMA is worth. BLOCKS is for an SM.
//
// launch attend: grid(BLOCKS*sm_count) block(32*WARPS) smem(1024 + WARPS*64*D*min(STAGES, (smem_optin//BLOCKS - 3072 - WARPS*min(16, H//Hkv)*4*(D + 4))//(WARPS*64*D)) + WARPS*min(16, H//Hkv)*4*(D + 4)) cooperative
// tensormap k_map: k_cache view(B*Hkv*L, D//64, 64) box(16, 1 + WIDE*(D//64 - 1), 64) swizzle(128B)
// tensormap v_map: v_cache view(B*Hkv*L, D//64, 64) box(16, 1 + WIDE*(D//64 - 1), 64) swizzle(128B)
// workspace: BLOCKS*sm_count*2*(16*(D + 2) + 1)*4
// static: H Hkv D
// tune-if: smem_optin > 200000
// tune-if: D == 64 or D == 128
// tune-if: (smem_optin//BLOCKS - 3072 - WARPS*min(16, H//Hkv)*4*(D + 4))//(WARPS*64*D) >= 2
// tune-if: WARPS*BLOCKS <= 8
#include <cooperative_groups.h>
#if DTYPE_BFLOAT16
#include <cuda_bf16.h>
#else
#include <cuda_fp16.h>
#endif

#ifndef WARPS
#define WARPS 8     // tune: 4 8
#endif
#ifndef STAGES
#define STAGES 3    // tune: 2 3 6
#endif
#ifndef BLOCKS
#define BLOCKS 1    // tune: 1 2
#endif
#ifndef EVICT
#define EVICT 2     // tune: 0 1 2 3
#endif
#ifndef BULK
#define BULK 1      // tune: 0 1
#endif
#ifndef WIDE
#define WIDE 0      // tune: 0 1
#endif

static constexpr __device__ int least(int a, int b) { return a < b ? a : b; }

static constexpr int WIDTH = STATIC_D;
static constexpr int SHARING = STATIC_H / STATIC_HKV;     // query heads per key/value head
static constexpr int ROWS = 16;                           // of them at a time; a row of the products each
static constexpr int GROUPS = (SHARING + ROWS - 1) / ROWS;
static constexpr int PAIRS = STATIC_HKV * GROUPS;         // of a sequence: what its keys are read for
static constexpr int TILE = 16 * WARPS;                   // keys
static constexpr int CHUNKS = WIDTH / 8;                  // of 16 bytes, per key
static constexpr int PANELS = WIDTH / 64;                 // of 128 bytes, in a row
static constexpr int BOXES = WIDE ? 1 : PANELS;           // for 16 rows
static constexpr int BOX = 16 * WIDTH * 2 / BOXES;         // bytes
static constexpr int SLOT = 2 * 16 * WIDTH * 2;           // bytes: a warp's keys, then its values
static constexpr int SHARED_ROWS = least(ROWS, SHARING);
static constexpr int MERGED = WARPS * SHARED_ROWS * (WIDTH + 4) * 4;   // bytes: where the warps' results meet
static constexpr int SHARED_BYTES = 232448;               // smem_optin, with tune-if
static constexpr int DEPTH = least(STAGES, (SHARED_BYTES / BLOCKS - 3072 - MERGED) / (WARPS * SLOT));
static constexpr int64_t EVICT_BELOW = 200;               // MB
static constexpr float LOWEST = -3.0e38f;                 // finite, so that its difference to itself is 0
static constexpr float LOG2_E = 1.4426950408889634f;

static_assert(sizeof(scalar_t) == 2, "two-byte elements only");
static_assert(WIDTH == 64 || WIDTH == 128, "D must be 64 or 128");
static_assert(DEPTH >= 2, "two slots at least");

#if __CUDA_ARCH__ >= 900
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

static __device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// What is read once may be the first to leave L2 again, rather than what others may want.
static __device__ __forceinline__ uint64_t eviction(int64_t bytes) {
    uint64_t first, otherwise;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(first));
#if EVICT == 3
    asm("createpolicy.fractional.L2::evict_unchanged.b64 %0, 1.0;" : "=l"(otherwise));
#else
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(otherwise));
#endif
    return EVICT == 1 || (EVICT == 2 && bytes < EVICT_BELOW * 1000000) ? first : otherwise;
}

static __device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

static __device__ __forceinline__ void barrier_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

static __device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}\n" ::"r"(barrier), "r"(parity)
        : "memory");
}

static __device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// A box at (panel, row) of the cache; what lies past its end arrives as zeros.
static __device__ __forceinline__ void tma_load(uint32_t to, const CUtensorMap* map, int panel, int row,
                                                uint32_t barrier, uint64_t policy) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
        "[%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
        "l"(map), "r"(0), "r"(panel), "r"(row), "r"(barrier), "l"(policy)
        : "memory");
}

// 16 bytes from global to shared memory, or zeros.
static __device__ __forceinline__ void copy_async(uint32_t to, const scalar_t* from, bool inside, uint64_t policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
                 "r"(inside ? 16 : 0), "l"(policy)
                 : "memory");
}

// This thread's arrival, as soon as its copies so far are there.
static __device__ __forceinline__ void arrive_copied(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// What this thread wrote to shared memory comes before any copy that is asked for later.
static __device__ __forceinline__ void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

static __device__ __forceinline__ void store_shared(uint32_t address, uint4 v) {
    asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

static __device__ __forceinline__ void release(int* flag) {
    asm volatile("st.release.gpu.global.b32 [%0], 1;" ::"l"(flag) : "memory");
}

static __device__ __forceinline__ bool released(const int* flag) {
    int value;
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
}

static __device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ __forceinline__ uint32_t packed(float low, float high) {
#if DTYPE_BFLOAT16
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
#else
    __half2 pair = __floats2half2_rn(low, high);
#endif
    return *reinterpret_cast<uint32_t*>(&pair);
}

// ---------------------------------------------------------------- shares

// A tile of a pair (key/value head and group of query heads) of a sequence.
struct Cursor {
    const int32_t* input_pos;
    int sequence, pair, tile, tiles, position;

    __device__ __forceinline__ void enter(int b) {
        sequence = b;
        position = input_pos[b];
        tiles = position / TILE + 1;
    }

    // To tile `index` of all; the lanes of a warp look at 32 sequences at a time.
    __device__ __forceinline__ void seek(int64_t index, int B) {
        const int lane = threadIdx.x % 32;
        for (int base = 0;; base += 32) {
            const int own = base + lane < B ? PAIRS * (input_pos[base + lane] / TILE + 1) : 0;
            int upto = own;
#pragma unroll
            for (int offset = 1; offset < 32; offset *= 2) {
                const int other = __shfl_up_sync(~0u, upto, offset);
                if (lane >= offset) upto += other;
            }
            const int passed = __popc(__ballot_sync(~0u, index >= upto));
            if (passed == 32) {
                index -= __shfl_sync(~0u, upto, 31);
                continue;
            }
            index -= __shfl_sync(~0u, upto - own, passed);
            enter(base + passed);
            pair = int(index) / tiles;
            tile = int(index) % tiles;
            return;
        }
    }

    // To the tile after this one; B is the number of sequences.
    __device__ __forceinline__ void advance(int B) {
        if (++tile < tiles) return;
        tile = 0;
        if (++pair < PAIRS) return;
        pair = 0;
        if (sequence + 1 < B) enter(sequence + 1);
    }

    __device__ __forceinline__ int64_t kv_row() const { return int64_t(sequence) * STATIC_HKV + pair / GROUPS; }
    __device__ __forceinline__ int first_head() const { return pair % GROUPS * ROWS; }
    __device__ __forceinline__ int64_t query_row() const { return kv_row() * SHARING + first_head(); }
};

// Where the copies leave a 16-byte chunk of a row: those of 128 bytes are permuted, by where they lie in 1024, so that the 8
// rows that one ldmatrix reads fall into different banks.
static __device__ __forceinline__ uint32_t at(int row, int chunk) {
    const int panel = chunk / 8, line = WIDE ? row * PANELS + panel : panel * 16 + row;
    return line * 128 + (chunk % 8 ^ line % 8) * 16;
}

// A warp's slots, its 16 keys and values of a tile each. Every lane calls its functions.
struct Ring {
    uint32_t slots, barriers;
    const CUtensorMap *k_map, *v_map;
    const scalar_t *k_cache, *v_cache;
    int64_t L;
    uint64_t policy;
    uint32_t phases;   // a bit per slot: the parity of its next arrival

    __device__ __forceinline__ static int first_key(const Cursor& cursor) {
        return cursor.tile * TILE + threadIdx.x / 32 * 16;
    }

    // Nothing where none of the keys exists.
    __device__ __forceinline__ void fetch(int slot, const Cursor& cursor) const {
        const int key = first_key(cursor);
        if (key > cursor.position) return;
        if constexpr (BULK)
            fetch_boxes(slots + slot * SLOT, barriers + slot * 8, int(cursor.kv_row() * L) + key);
        else
            fetch_chunks(slots + slot * SLOT, barriers + slot * 8, cursor.kv_row() * L + key, cursor.position + 1 - key);
    }

    __device__ __forceinline__ void fetch_boxes(uint32_t to, uint32_t barrier, int row) const {
        if (threadIdx.x % 32 != 0) return;
        barrier_expect(barrier, SLOT);
#pragma unroll
        for (int box = 0; box < BOXES; ++box) tma_load(to + box * BOX, k_map, box, row, barrier, policy);
#pragma unroll
        for (int box = 0; box < BOXES; ++box) tma_load(to + SLOT / 2 + box * BOX, v_map, box, row, barrier, policy);
    }

    // Of the 16 rows from `first` on the first `left`, and zeros for the others.
    __device__ __forceinline__ void fetch_chunks(uint32_t to, uint32_t barrier, int64_t first, int left) const {
        const int chunk = threadIdx.x % CHUNKS;
#pragma unroll
        for (int row = threadIdx.x % 32 / CHUNKS; row < 16; row += 32 / CHUNKS) {
            const int64_t from = row < left ? (first + row) * WIDTH + chunk * 8 : 0;
            copy_async(to + at(row, chunk), k_cache + from, row < left, policy);
            copy_async(to + SLOT / 2 + at(row, chunk), v_cache + from, row < left, policy);
        }
        arrive_copied(barrier);
    }

    __device__ __forceinline__ void landed(int slot) {
        barrier_wait(barriers + slot * 8, phases >> slot & 1);
        phases ^= 1u << slot;
    }

    // Where only `left` of the 16 keys exist, at least one: the values past them may be NaN.
    __device__ __forceinline__ void complete(int slot, int left) const {
        const int lane = threadIdx.x % 32;
        const uint32_t values = slots + slot * SLOT + SLOT / 2;
        for (int row = left + lane / CHUNKS; row < 16; row += 32 / CHUNKS)
            store_shared(values + at(row, lane % CHUNKS), make_uint4(0, 0, 0, 0));
        async_fence();
        __syncwarp();
    }
};

// ---------------------------------------------------------------- a warp's attention over its keys of a head

// Rows are query heads; a lane holds of rows lane / 4 and 8 below it two columns of every 8.
struct Sums {
    float highest[2], total[2], sum[WIDTH / 8][4];

    __device__ __forceinline__ void clear() {
        highest[0] = highest[1] = LOWEST;
        total[0] = total[1] = 0.0f;
#pragma unroll
        for (int n = 0; n < WIDTH / 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[n][e] = 0.0f;
    }

    // `left` of the 16 keys exist: at least one.
    __device__ __forceinline__ void add(uint32_t slot, const uint32_t (&query)[WIDTH / 16][4], int left, float factor) {
        const int lane = threadIdx.x % 32;
        float score[2][4] = {}, odd[2][4] = {};   // two chains each: a product waits for the one before it
#pragma unroll
        for (int k = 0; k < WIDTH / 16; ++k) {
            uint32_t key[4];
            ldmatrix(key, slot + at(lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
#pragma unroll
            for (int n = 0; n < 2; ++n) mma(k % 2 ? odd[n] : score[n], query[k], key[n * 2], key[n * 2 + 1]);
        }

        float maximum[2] = {highest[0], highest[1]};
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int column = n * 8 + lane % 4 * 2 + e % 2;
                score[n][e] = column < left ? (score[n][e] + odd[n][e]) * factor : LOWEST;
                maximum[e / 2] = fmaxf(maximum[e / 2], score[n][e]);
            }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            maximum[half] = fmaxf(maximum[half], __shfl_xor_sync(~0u, maximum[half], 1));
            maximum[half] = fmaxf(maximum[half], __shfl_xor_sync(~0u, maximum[half], 2));
            const float shrink = fast_exp2(highest[half] - maximum[half]);
            highest[half] = maximum[half];
            total[half] *= shrink;
#pragma unroll
            for (int n = 0; n < WIDTH / 8; ++n) sum[n][half * 2] *= shrink, sum[n][half * 2 + 1] *= shrink;
        }
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int column = n * 8 + lane % 4 * 2 + e % 2;
                score[n][e] = column < left ? fast_exp2(score[n][e] - highest[e / 2]) : 0.0f;
                total[e / 2] += score[n][e];
            }

        const uint32_t weight[4] = {packed(score[0][0], score[0][1]), packed(score[0][2], score[0][3]),
                                    packed(score[1][0], score[1][1]), packed(score[1][2], score[1][3])};
#pragma unroll
        for (int n = 0; n < WIDTH / 16; ++n) {
            uint32_t value[4];
            ldmatrix_transposed(value, slot + SLOT / 2 + at(lane % 16, n * 2 + lane / 16));
            mma(sum[n * 2], weight, value[0], value[1]);
            mma(sum[n * 2 + 1], weight, value[2], value[3]);
        }
    }
};

// ---------------------------------------------------------------- shared results

// Where the blocks' parts of cut heads meet: two slots a block, for the first head of its share and for the last.
struct Parts {
    float* sums;     // [slot][row][WIDTH]
    float2* stats;   // [slot][row]: maximum and total
    int* flags;      // [slot]

    __device__ __forceinline__ explicit Parts(void* workspace)
        : sums(static_cast<float*>(workspace)),
          stats(reinterpret_cast<float2*>(sums + gridDim.x * 2 * ROWS * WIDTH)),
          flags(reinterpret_cast<int*>(stats + gridDim.x * 2 * ROWS)) {}
};

// The first tile of a block's share; no share is empty but those of blocks that there are no tiles for.
static __device__ __forceinline__ int64_t share_begin(int64_t tiles, int block) {
    const int sharers = int(tiles < gridDim.x ? tiles : gridDim.x);
    return block < sharers ? tiles * block / sharers : tiles;
}

static __device__ __forceinline__ int owner(int64_t tiles, int64_t tile) {
    const int sharers = int(tiles < gridDim.x ? tiles : gridDim.x);
    int block = int(tile * sharers / tiles);
    while (share_begin(tiles, block + 1) <= tile) ++block;
    return block;
}

// Puts a row of a cut pair together. Slots: `opening`, then the first ones of `more` blocks from `next` on.
static __device__ __forceinline__ void combine(scalar_t* out, const Parts& parts, int row, int opening, int next,
                                               int more, float* scratch) {
    constexpr int EACH = WIDTH / 32;   // columns of a lane
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float highest = LOWEST, total = 0.0f, sum[EACH] = {};
#pragma unroll 4
    for (int p = warp; p <= more; p += WARPS) {
        const int at = (p ? (next + p - 1) * 2 : opening) * ROWS + row;
        const float2 stats = __ldcg(parts.stats + at);
        float part[EACH];
#pragma unroll
        for (int e = 0; e < EACH; ++e) part[e] = __ldcg(parts.sums + at * WIDTH + e * 32 + lane);
        const float top = fmaxf(highest, stats.x);
        const float shrink = fast_exp2(highest - top), weight = fast_exp2(stats.x - top);
        highest = top;
        total = total * shrink + stats.y * weight;
#pragma unroll
        for (int e = 0; e < EACH; ++e) sum[e] = sum[e] * shrink + part[e] * weight;
    }
    __syncthreads();   // all have left the scratch memory
    float* own = scratch + warp * (WIDTH + 4);
#pragma unroll
    for (int e = 0; e < EACH; ++e) own[e * 32 + lane] = sum[e];
    if (lane == 0) own[WIDTH] = highest, own[WIDTH + 1] = total;
    __syncthreads();
    for (int d = threadIdx.x; d < WIDTH; d += 32 * WARPS) {
        float top = LOWEST, numerator = 0.0f, denominator = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) top = fmaxf(top, scratch[w * (WIDTH + 4) + WIDTH]);
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            const float* from = scratch + w * (WIDTH + 4);
            const float weight = fast_exp2(from[WIDTH] - top);
            numerator += from[d] * weight;
            denominator += from[WIDTH + 1] * weight;
        }
        out[d] = scalar_t(numerator / denominator);
    }
}

#endif

// ---------------------------------------------------------------- the kernel

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
attend(scalar_t* out, const scalar_t* q, const scalar_t* k_cache, const scalar_t* v_cache, const int32_t* input_pos,
       int64_t B, int64_t H, int64_t Hkv, int64_t L, int64_t D, float scale, void* workspace,
       const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(1024) unsigned char dynamic_smem[];
    __shared__ __align__(8) uint64_t barriers[WARPS * DEPTH];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // The swizzle repeats every 1024 bytes.
    const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_smem));
    const uint32_t padding = (1024 - base % 1024) % 1024;
    // [warp][row][WIDTH + 4]: the sums, maximum and total
    float* merged = reinterpret_cast<float*>(dynamic_smem + padding + WARPS * DEPTH * SLOT);

    Ring ring = {base + padding + warp * DEPTH * SLOT,
                 static_cast<uint32_t>(__cvta_generic_to_shared(barriers)) + warp * DEPTH * 8,
                 &k_map, &v_map, k_cache, v_cache, L, 0, 0};
    if (lane == 0) {
        prefetch_map(&k_map);
        prefetch_map(&v_map);
#pragma unroll
        for (int slot = 0; slot < DEPTH; ++slot) barrier_init(ring.barriers + slot * 8, BULK ? 1 : 32);
        barrier_fence();
    }
    __syncwarp();

    // Every warp counts for itself.
    int count = 0;
    for (int b = lane; b < B; b += 32) count += input_pos[b] / TILE + 1;
    const int64_t all = int64_t(PAIRS) * __reduce_add_sync(~0u, count);
    const int64_t begin = share_begin(all, blockIdx.x);
    const int items = int(share_begin(all, blockIdx.x + 1) - begin);

    ring.policy = eviction(all * TILE * WIDTH * 4);

    Cursor reading = {input_pos};
    if (items > 0) reading.seek(begin, int(B));
    Cursor writing = reading;
    int fetched = 0;
#pragma unroll 1
    for (; fetched < DEPTH && fetched < items; ++fetched) {
        ring.fetch(fetched, writing);
        writing.advance(int(B));
    }

    // After the first keys are asked for: its fence takes a while.
    const Parts parts(workspace);
    if (threadIdx.x < 2) parts.flags[blockIdx.x * 2 + threadIdx.x] = 0;
    const cooperative_groups::grid_group grid = cooperative_groups::this_grid();
    cooperative_groups::grid_group::arrival_token arrival = grid.barrier_arrive();

    uint32_t query[WIDTH / 16][4];
    Sums sums;
    sums.clear();
    int first_tile = reading.tile, slot = 0;
    bool entered = false, stopped = false;   // stopped: this block's share ends within a pair
#pragma unroll 1
    for (int item = 0; item < items; ++item) {
        if (!entered) {
            const scalar_t* rows = q + reading.query_row() * WIDTH;
#pragma unroll
            for (int k = 0; k < WIDTH / 16; ++k)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int row = lane / 4 + e % 2 * 8, column = k * 16 + e / 2 * 8 + lane % 4 * 2;
                    query[k][e] = reading.first_head() + row < SHARING
                                      ? *reinterpret_cast<const uint32_t*>(rows + row * WIDTH + column)
                                      : 0;
                }
            entered = true;
        }

        const int left = reading.position + 1 - Ring::first_key(reading);
        if (left > 0) {
            ring.landed(slot);
            if (left < 16) ring.complete(slot, left);
            sums.add(ring.slots + slot * SLOT, query, left, scale * LOG2_E);
        }
        __syncwarp();   // all lanes have read the slot
        if (fetched < items) {
            ring.fetch(slot, writing);
            writing.advance(int(B));
            ++fetched;
        }
        slot = slot == DEPTH - 1 ? 0 : slot + 1;
        if (item == 0) grid.barrier_wait(static_cast<cooperative_groups::grid_group::arrival_token&&>(arrival));

        const bool pair_ends = reading.tile + 1 == reading.tiles;
        if (!pair_ends && item + 1 < items) {
            reading.advance(int(B));
            continue;
        }

        // The pair ends, or this block's share of it: the warps' results are put together.
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            sums.total[half] += __shfl_xor_sync(~0u, sums.total[half], 1);
            sums.total[half] += __shfl_xor_sync(~0u, sums.total[half], 2);
            const int row = lane / 4 + half * 8;
            if (row < SHARING) {
                float* to = merged + (warp * SHARED_ROWS + row) * (WIDTH + 4);
#pragma unroll
                for (int n = 0; n < WIDTH / 8; ++n)
                    *reinterpret_cast<float2*>(to + n * 8 + lane % 4 * 2) =
                        make_float2(sums.sum[n][half * 2], sums.sum[n][half * 2 + 1]);
                if (lane % 4 == 0)
                    *reinterpret_cast<float2*>(to + WIDTH) = make_float2(sums.highest[half], sums.total[half]);
            }
        }
        __syncthreads();
        const bool whole = first_tile == 0 && pair_ends;
        const int part = blockIdx.x * 2 + (item + 1 - (reading.tile - first_tile + 1) > 0);   // not the first of this block
        const int rows = least(ROWS, SHARING - reading.first_head());
#pragma unroll 1
        for (int i = threadIdx.x; i < rows * WIDTH; i += 32 * WARPS) {
            const int row = i / WIDTH, d = i % WIDTH;
            const float* from = merged + row * (WIDTH + 4);
            float highest = LOWEST, total = 0.0f, sum = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) highest = fmaxf(highest, from[w * SHARED_ROWS * (WIDTH + 4) + WIDTH]);
#pragma unroll
            for (int w = 0; w < WARPS; ++w) {
                const float shrink = fast_exp2(from[w * SHARED_ROWS * (WIDTH + 4) + WIDTH] - highest);
                total += from[w * SHARED_ROWS * (WIDTH + 4) + WIDTH + 1] * shrink;
                sum += from[w * SHARED_ROWS * (WIDTH + 4) + d] * shrink;
            }
            if (whole) {
                out[(reading.query_row() + row) * WIDTH + d] = scalar_t(sum / total);
            } else {
                parts.sums[part * ROWS * WIDTH + i] = sum;
                if (d == 0) parts.stats[part * ROWS + row] = make_float2(highest, total);
            }
        }
        __syncthreads();
        if (!whole && threadIdx.x == 0) {
            __threadfence();
            release(parts.flags + part);
        }
        sums.clear();
        entered = false;
        stopped = !pair_ends;
        if (stopped) break;
        reading.advance(int(B));
        first_tile = reading.tile;
    }

    if (!stopped) return;

    // The pair lies in blocks `before` to `after`; all but the last of them stopped within it and take its rows in turn.
    const int64_t pair_begin = begin + items - 1 - reading.tile;
    const int before = owner(all, pair_begin), after = owner(all, pair_begin + reading.tiles - 1);
    const int opening = before * 2 + (share_begin(all, before) < pair_begin);
    for (int p = threadIdx.x; p <= after - before; p += 32 * WARPS)
        while (!released(parts.flags + (p ? (before + p) * 2 : opening))) {}
    __syncthreads();
    const int rows = least(ROWS, SHARING - reading.first_head());
#pragma unroll 1
    for (int row = blockIdx.x - before; row < rows; row += after - before)
        combine(out + (reading.query_row() + row) * WIDTH, parts, row, opening, before + 1, after - before, merged);
#endif
}
