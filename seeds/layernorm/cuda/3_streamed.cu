// 3: rows stream through a ring in shared memory. One block per SM stays for the whole call and its teams of threads
// take every so many rows each; so there are no waves of blocks, reads go on while a row is summed and written, and
// weight and bias are read once per team, into registers, rather than once per row. A team has as many threads as a row
// has HELD bytes each. Its ring holds STAGES rows: on sm_90 one thread brings a row by a bulk copy (TMA) that an
// mbarrier counts; elsewhere, or with BULK=0, every thread brings by cp.async what it reads itself and waits for
// nobody.
// Mean and squared deviations are summed in one exchange rather than two: each thread has both about its own mean, and
// pairs are merged (Chan, Golub and LeVeque, 1983). Few narrow rows are a matter of latency alone: layernorm_few gives
// each a warp that asks for row, weight and bias at once, where 2 asks for weight and bias when the sums are there.
//
// At N=8192, D=4096 in 16 bits: 134 MB, 45 us at the 3.0 TB/s of a copy on an H100.
//
// Streams where D*itemsize % 512 == 0 and a row has a team of at most THREADS threads, 128 bytes each; any other width
// is right but slow, a block per row that reads it three times: 2 is for those.
//
// Compiled for sm_90a and sm_86; not run.
//
// READS and WRITES are L2 policies: 0 normal, 1 evict_first. BLOCKS is for an SM; with WAVES above 1 they do not stay, and
// whichever SM is done first gets the next one.
//
// launch layernorm_few: grid(cdiv(N, 4)) block(128) when(D*itemsize % 512 == 0 and D*itemsize <= 4096 and N <= 16*sm_count)
// launch layernorm: grid(min(N, BLOCKS*WAVES*sm_count)) block(THREADS) smem(smem_optin//BLOCKS - 2048) when(not (D*itemsize % 512 == 0 and D*itemsize <= 4096 and N <= 16*sm_count))
// static: D
// tune-if: BLOCKS*THREADS*HELD <= 32768
// tune-if: WAVES == 1 or BLOCKS > 1
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#ifndef THREADS
#define THREADS 512   // tune: 256 512 1024
#endif
#ifndef HELD
#define HELD 64       // tune: 32 64
#endif
#ifndef STAGES
#define STAGES 6      // tune: 3 6
#endif
#ifndef BLOCKS
#define BLOCKS 1      // tune: 1 2
#endif
#ifndef WAVES
#define WAVES 1       // tune: 1 4
#endif
#ifndef BULK
#define BULK 1        // tune: 0 1
#endif
#ifndef READS
#define READS 1       // tune: 0 1
#endif
#ifndef WRITES
#define WRITES 0      // tune: 0 1
#endif

static constexpr __device__ int least(int a, int b) { return a < b ? a : b; }

static constexpr int WIDTH = STATIC_D;
static constexpr int ROW = WIDTH * sizeof(scalar_t);       // bytes
static constexpr int VECTORS = ROW / 16;
static constexpr int VECTOR = 16 / sizeof(scalar_t);       // elements
static constexpr bool EVEN = ROW % 512 == 0;               // a row is whole vectors of whole warps

static constexpr __device__ bool fits(int each) { return VECTORS % (32 * each) == 0 && VECTORS / each <= THREADS; }

// Vectors of a row per thread: as many as HELD allows, or the fewest beyond it; 0 where a row has no team.
static constexpr __device__ int held() {
    for (int each = HELD / 16; each > 0; --each)
        if (fits(each)) return each;
    for (int each = HELD / 16 + 1; each <= 8; ++each)
        if (fits(each)) return each;
    return 0;
}

// What a block may have, as smem_optin of the launch plan says it.
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
static constexpr int SHARED_BYTES = 232448;
#elif __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870
static constexpr int SHARED_BYTES = 166912;
#else
static constexpr int SHARED_BYTES = 101376;
#endif

static constexpr bool MANNED = EVEN && held() > 0;
static constexpr int EACH = MANNED ? held() : 1;           // vectors per thread
static constexpr int TEAM = MANNED ? VECTORS / EACH : THREADS;
static constexpr int TEAMS = THREADS / TEAM;
static constexpr int DEPTH = least(STAGES, (SHARED_BYTES / BLOCKS - 2048) / (TEAMS * ROW));
static constexpr bool STREAMED = MANNED && DEPTH >= 2;
static_assert(TEAM == 32 || TEAMS <= 16, "a barrier for every team");
static constexpr bool BY_TMA = BULK && __CUDA_ARCH__ >= 900;

// ---------------------------------------------------------------- instructions

static __device__ __forceinline__ void barrier_init(uint32_t barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}

static __device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}\n" ::"r"(barrier), "r"(parity)
        : "memory");
#endif
}

// Makes their initial state known to the copies.
static __device__ __forceinline__ void barrier_fence() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// A whole row from global to shared memory, counted by the barrier.
static __device__ __forceinline__ void copy_bulk(uint32_t target, const scalar_t* source, uint32_t barrier,
                                                 uint64_t policy) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(ROW) : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], "
        "%4;" ::"r"(target),
        "l"(source), "r"(ROW), "r"(barrier), "l"(policy)
        : "memory");
#endif
}

static __device__ __forceinline__ void copy_async(uint32_t target, const scalar_t* source, uint64_t policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "l"(policy)
                 : "memory");
}

static __device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
static __device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

template <bool FIRST>
static __device__ __forceinline__ uint64_t eviction() {
    uint64_t policy;
    if constexpr (FIRST)
        asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    else
        asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

static __device__ __forceinline__ uint4 load_shared(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

// Volatile, so that it is asked for here and not where it is needed.
static __device__ __forceinline__ uint4 load(const scalar_t* row, int i) {
    uint4 v;
    asm volatile("ld.global.nc.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(reinterpret_cast<const uint4*>(row) + i));
    return v;
}

static __device__ __forceinline__ void store(scalar_t* row, int i, uint4 v, uint64_t policy) {
    asm volatile("st.global.L2::cache_hint.v4.b32 [%0], {%1,%2,%3,%4}, %5;" ::"l"(reinterpret_cast<uint4*>(row) + i),
                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "l"(policy)
                 : "memory");
}

// ---------------------------------------------------------------- a team's row

struct alignas(16) Pack {
    scalar_t value[VECTOR];
};

static __device__ __forceinline__ Pack unpacked(uint4 raw) { return *reinterpret_cast<Pack*>(&raw); }

// Makes the compiler convert to fp32 anew in each pass: it would keep the results, and there are no registers for both.
static __device__ __forceinline__ void forget(uint4& raw) {
    asm volatile("" : "+r"(raw.x), "+r"(raw.y), "+r"(raw.z), "+r"(raw.w));
}

// Of `count` values: their mean and the sum of the squares of their deviations from it.
struct Moments {
    float mean, squares;

    // Of a thread's values; the deviations correct the rounding of the mean.
    template <int P>
    static __device__ __forceinline__ Moments of(uint4 (&row)[P]) {
        constexpr float COUNT = P * VECTOR;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < P; ++i) {
            const Pack pack = unpacked(row[i]);
            float part = float(pack.value[0]);
#pragma unroll
            for (int e = 1; e < VECTOR; ++e) part += float(pack.value[e]);
            sum += part;
        }
        const float about = sum * (1.0f / COUNT);
        float deviations = 0.0f, squares = 0.0f;
#pragma unroll
        for (int i = 0; i < P; ++i) {
            forget(row[i]);
            const Pack pack = unpacked(row[i]);
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) {
                const float deviation = float(pack.value[e]) - about;
                deviations += deviation;
                squares += deviation * deviation;
            }
            forget(row[i]);
        }
        const float correction = deviations * (1.0f / COUNT);
        return {about + correction, fmaxf(squares - deviations * correction, 0.0f)};
    }

    // Over the lanes of a warp, with `count` values each; every lane gets the same bits.
    __device__ __forceinline__ void merge_lanes(float count) {
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            const float other = __shfl_xor_sync(~0u, mean, offset);
            const float others = __shfl_xor_sync(~0u, squares, offset);
            const float apart = other - mean;
            mean = 0.5f * (mean + other);
            squares = squares + others + apart * apart * (0.5f * offset * count);
        }
    }

    // With one more of `count` values, where this one stands for `merged` times as many.
    __device__ __forceinline__ void merge(Moments other, int merged, float count) {
        const float apart = other.mean - mean, part = 1.0f / (merged + 1);
        mean += apart * part;
        squares += other.squares + apart * apart * (merged * part * count);
    }

    __device__ __forceinline__ float scale(float eps) const { return rsqrtf(squares * (1.0f / WIDTH) + eps); }
};

static __device__ __forceinline__ uint4 affine(uint4 x, uint4 weight, uint4 bias, float mean, float scale) {
    const Pack values = unpacked(x), weights = unpacked(weight), biases = unpacked(bias);
    Pack result;
#pragma unroll
    for (int e = 0; e < VECTOR; ++e)
        result.value[e] = scalar_t((float(values.value[e]) - mean) * scale * float(weights.value[e]) +
                                   float(biases.value[e]));
    return *reinterpret_cast<uint4*>(&result);
}

// The parts of one row, weight and bias that are this thread's.
template <int P, int T>
struct Share {
    uint4 weight[P], bias[P];

    __device__ __forceinline__ void load_parameters(const scalar_t* weights, const scalar_t* biases, int thread) {
#pragma unroll
        for (int i = 0; i < P; ++i) weight[i] = load(weights, thread + i * T), bias[i] = load(biases, thread + i * T);
    }

    __device__ __forceinline__ void write(scalar_t* out, uint4 (&row)[P], int thread, Moments moments, float eps,
                                          uint64_t policy) {
        const float scale = moments.scale(eps);
#pragma unroll
        for (int i = 0; i < P; ++i) {
            forget(weight[i]);
            forget(bias[i]);
            store(out, thread + i * T, affine(row[i], weight[i], bias[i], moments.mean, scale), policy);
        }
    }
};

// ---------------------------------------------------------------- rows in a ring

struct Ring {
    uint32_t slots, barriers;   // this team's, in shared memory
    const scalar_t* x;
    uint64_t policy;
    int thread;

    // Every thread of the team calls it.
    __device__ __forceinline__ void fetch(int slot, int64_t row, int64_t N) const {
        if constexpr (BY_TMA) {
            if (thread == 0 && row < N) copy_bulk(slots + slot * ROW, x + row * WIDTH, barriers + slot * 8, policy);
        } else {
            if (row < N)
#pragma unroll
                for (int i = 0; i < EACH; ++i)
                    copy_async(slots + slot * ROW + (thread + i * TEAM) * 16,
                               x + row * WIDTH + (thread + i * TEAM) * VECTOR, policy);
            commit();   // an empty group keeps the count
        }
    }

    __device__ __forceinline__ void landed(int slot, uint32_t parity) const {
        if constexpr (BY_TMA)
            barrier_wait(barriers + slot * 8, parity);
        else
            wait<STREAMED ? DEPTH - 1 : 0>();
    }
};

// All threads of a team; the others of the block do not wait. There are 16 barriers, and no more teams that need one.
static __device__ __forceinline__ void team_sync(int team) {
    if constexpr (TEAM == 32)
        __syncwarp();
    else
        asm volatile("bar.sync %0, %1;" ::"r"(team), "n"(TEAM) : "memory");
}

static __device__ __forceinline__ void streamed(scalar_t* out, const scalar_t* x, const scalar_t* weight,
                                                const scalar_t* bias, int64_t N, float eps) {
    extern __shared__ __align__(128) unsigned char dynamic_smem[];
    __shared__ __align__(8) uint64_t barriers[TEAMS * (STREAMED ? DEPTH : 1)];
    __shared__ Moments scratch[2][THREADS / 32];   // by turns: whoever writes one has seen all leave the other

    const int team = threadIdx.x / TEAM, thread = threadIdx.x % TEAM;
    const Ring ring = {static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_smem)) + team * DEPTH * ROW,
                       static_cast<uint32_t>(__cvta_generic_to_shared(barriers)) + team * DEPTH * 8, x,
                       eviction<READS>(), thread};
    // Neighbouring rows go to different SMs, and the rows that are left over too.
    const int64_t step = int64_t(gridDim.x) * TEAMS;
    int64_t row = int64_t(team) * gridDim.x + blockIdx.x;
    const bool spare = team >= TEAMS;   // threads that make no whole team
    if (BY_TMA && thread == 0 && !spare) {
#pragma unroll
        for (int slot = 0; slot < DEPTH; ++slot) barrier_init(ring.barriers + slot * 8);
        barrier_fence();
    }
    if (!spare)
#pragma unroll 1
        for (int slot = 0; slot < DEPTH; ++slot) ring.fetch(slot, row + slot * step, N);
    if constexpr (BY_TMA) __syncthreads();   // the barriers are there for all
    if (spare || row >= N) return;

    Share<EACH, TEAM> share;
    share.load_parameters(weight, bias, thread);
    const uint64_t writes = eviction<WRITES>();
    int slot = 0;
    uint32_t parity = 0, turn = 0;
#pragma unroll 1
    for (; row < N; row += step) {
        ring.landed(slot, parity);
        uint4 held[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i) held[i] = load_shared(ring.slots + slot * ROW + (thread + i * TEAM) * 16);

        Moments moments = Moments::of(held);
        moments.merge_lanes(EACH * VECTOR);
        if constexpr (TEAM > 32) {
            const int first = team * (TEAM / 32);
            if (threadIdx.x % 32 == 0) scratch[turn][threadIdx.x / 32] = moments;
            team_sync(team);
            moments = scratch[turn][first];
#pragma unroll
            for (int w = 1; w < TEAM / 32; ++w) moments.merge(scratch[turn][first + w], w, 32 * EACH * VECTOR);
            turn ^= 1;
        } else {
            team_sync(team);
        }

        ring.fetch(slot, row + DEPTH * step, N);   // all have read this slot
        if (++slot == DEPTH) slot = 0, parity ^= 1;
        share.write(out + row * WIDTH, held, thread, moments, eps, writes);
    }
}

// ---------------------------------------------------------------- other widths: a block per row

template <int COUNT>
static __device__ __forceinline__ void block_sum(float (&value)[COUNT], float (*scratch)[COUNT]) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
#pragma unroll
        for (int c = 0; c < COUNT; ++c) value[c] += __shfl_xor_sync(~0u, value[c], offset);
    if (threadIdx.x % 32 == 0)
#pragma unroll
        for (int c = 0; c < COUNT; ++c) scratch[threadIdx.x / 32][c] = value[c];
    __syncthreads();
#pragma unroll
    for (int c = 0; c < COUNT; ++c) {
        value[c] = 0.0f;
        for (int w = 0; w < THREADS / 32; ++w) value[c] += scratch[w][c];
    }
}

static __device__ __forceinline__ void read_again(scalar_t* out, const scalar_t* x, const scalar_t* weight,
                                                  const scalar_t* bias, int64_t N, float eps) {
    __shared__ float sums[THREADS / 32][1], squares[THREADS / 32][2];
#pragma unroll 1
    for (int64_t row = blockIdx.x; row < N; row += gridDim.x) {
        const scalar_t* from = x + row * WIDTH;
        float sum[1] = {0.0f};
#pragma unroll 4
        for (int i = threadIdx.x; i < WIDTH; i += THREADS) sum[0] += float(from[i]);
        block_sum(sum, sums);
        const float about = sum[0] / WIDTH;
        float deviations[2] = {0.0f, 0.0f};
#pragma unroll 4
        for (int i = threadIdx.x; i < WIDTH; i += THREADS) {
            const float deviation = float(from[i]) - about;
            deviations[0] += deviation;
            deviations[1] += deviation * deviation;
        }
        block_sum(deviations, squares);
        const float correction = deviations[0] / WIDTH;
        const float scale = rsqrtf(fmaxf(deviations[1] / WIDTH - correction * correction, 0.0f) + eps);
#pragma unroll 4
        for (int i = threadIdx.x; i < WIDTH; i += THREADS)
            out[row * WIDTH + i] =
                scalar_t((float(from[i]) - (about + correction)) * scale * float(weight[i]) + float(bias[i]));
    }
}

// ---------------------------------------------------------------- the kernels

extern "C" __global__ void __launch_bounds__(128)
layernorm_few(scalar_t* out, const scalar_t* x, const scalar_t* weight, const scalar_t* bias, int64_t N, int64_t D,
              float eps, void* workspace) {
    if constexpr (EVEN && ROW <= 4096) {
        constexpr int P = VECTORS / 32 ? VECTORS / 32 : 1;
        const int lane = threadIdx.x % 32;
        const int64_t row = int64_t(blockIdx.x) * 4 + threadIdx.x / 32;
        if (row >= N) return;
        uint4 held[P];
#pragma unroll
        for (int i = 0; i < P; ++i) held[i] = load(x + row * WIDTH, lane + i * 32);
        Share<P, 32> share;
        share.load_parameters(weight, bias, lane);
        Moments moments = Moments::of(held);
        moments.merge_lanes(P * VECTOR);
        share.write(out + row * WIDTH, held, lane, moments, eps, eviction<WRITES>());
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
layernorm(scalar_t* out, const scalar_t* x, const scalar_t* weight, const scalar_t* bias, int64_t N, int64_t D,
          float eps, void* workspace) {
    if constexpr (STREAMED)
        streamed(out, x, weight, bias, N, eps);
    else
        read_again(out, x, weight, bias, N, eps);
}
