// 2: the row is read once, 16 bytes per load, and stays in registers; sums by warp shuffles, one barrier each.
// A narrow row (up to WARP_BYTES) belongs to one warp and needs no barrier at all, a wider one to a block.
// Right for any N and D: where D is odd or even only, rows are not 16-byte aligned and the loads shrink to the widest
// vector that divides D; rows too wide for registers are read again for each pass. Meant to win over 1 everywhere, and
// to run at the speed of a copy when D % 8 == 0; odd widths stay well below that.
//
// launch layernorm_warp:  grid(cdiv(N, THREADS//32)) block(THREADS) when(D*itemsize <= WARP_BYTES)
// launch layernorm_block: grid(N) block(THREADS) when(D*itemsize > WARP_BYTES)
// static: D
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#ifndef THREADS
#define THREADS 256       // tune: 64 128 256 512 1024
#endif
#ifndef WARP_BYTES
#define WARP_BYTES 2048   // tune: 512 1024 2048 4096
#endif

static constexpr int WIDTH = STATIC_D;
static constexpr int REGISTER_BYTES = THREADS <= 512 ? 256 : 128;   // of a row, per thread: half its registers at most

static constexpr __device__ int widest(int most) { return WIDTH % most == 0 ? most : widest(most / 2); }
static constexpr int VECTOR = widest(16 / sizeof(scalar_t));
static constexpr int VECTORS = WIDTH / VECTOR;

static constexpr int HELD_BYTES = VECTOR * sizeof(scalar_t) < 4 ? 4 : VECTOR * sizeof(scalar_t);   // in registers

template <int BYTES> struct Word;
template <> struct Word<16> { using type = uint4; };
template <> struct Word<8> { using type = uint2; };
template <> struct Word<4> { using type = unsigned int; };
template <> struct Word<2> { using type = unsigned short; };
using Raw = Word<VECTOR * sizeof(scalar_t)>::type;

struct alignas(VECTOR * sizeof(scalar_t)) Pack {
    scalar_t value[VECTOR];
};

static __device__ __forceinline__ Pack unpacked(Raw raw) { return *reinterpret_cast<Pack*>(&raw); }

// x streams through: it must not push weight and bias, which every row needs again, out of L1.
static __device__ __forceinline__ Raw load_once(const scalar_t* row, int i) {
    return __ldcs(reinterpret_cast<const Raw*>(row) + i);
}

static __device__ __forceinline__ Raw load_shared(const scalar_t* row, int i) {
    return __ldg(reinterpret_cast<const Raw*>(row) + i);
}

static __device__ __forceinline__ void store(scalar_t* row, int i, Pack pack) {
    __stcs(reinterpret_cast<Raw*>(row) + i, *reinterpret_cast<Raw*>(&pack));
}

// Makes the compiler convert to fp32 anew in each pass: it would keep the results, and a wide row has no registers for
// both.
static __device__ __forceinline__ void forget(Raw& raw) {
    if constexpr (sizeof(Raw) == 2) {
        asm volatile("" : "+h"(*reinterpret_cast<unsigned short*>(&raw)));
    } else {
#pragma unroll
        for (int w = 0; w < sizeof(Raw) / 4; ++w) asm volatile("" : "+r"(reinterpret_cast<unsigned int*>(&raw)[w]));
    }
}

// Sums COUNT values at once over the T threads of a row; every thread gets the sums.
template <int T, int COUNT>
static __device__ __forceinline__ void row_sum(float (&value)[COUNT], float (*scratch)[COUNT]) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
#pragma unroll
        for (int c = 0; c < COUNT; ++c) value[c] += __shfl_xor_sync(~0u, value[c], offset);
    if constexpr (T > 32) {
        constexpr int WARPS = T / 32;
        if (threadIdx.x % 32 == 0)
#pragma unroll
            for (int c = 0; c < COUNT; ++c) scratch[threadIdx.x / 32][c] = value[c];
        __syncthreads();
#pragma unroll
        for (int c = 0; c < COUNT; ++c) value[c] = scratch[threadIdx.x % WARPS][c];
#pragma unroll
        for (int offset = WARPS / 2; offset > 0; offset /= 2)
#pragma unroll
            for (int c = 0; c < COUNT; ++c) value[c] += __shfl_xor_sync(~0u, value[c], offset);
    }
}

static __device__ __forceinline__ void add_values(float& sum, Raw raw) {
    const Pack pack = unpacked(raw);
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) sum += float(pack.value[e]);
}

// Deviations and their squares: the former correct the rounding of the mean (Chan, Golub and LeVeque, 1983).
static __device__ __forceinline__ void add_deviations(float (&sums)[2], Raw raw, float mean) {
    const Pack pack = unpacked(raw);
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) {
        const float deviation = float(pack.value[e]) - mean;
        sums[0] += deviation;
        sums[1] += deviation * deviation;
    }
}

static __device__ __forceinline__ Pack affine(Raw x, Raw weight, Raw bias, float mean, float scale) {
    const Pack values = unpacked(x), weights = unpacked(weight), biases = unpacked(bias);
    Pack result;
#pragma unroll
    for (int e = 0; e < VECTOR; ++e)
        result.value[e] = scalar_t((float(values.value[e]) - mean) * scale * float(weights.value[e]) +
                                   float(biases.value[e]));
    return result;
}

static __device__ __forceinline__ float finish(float (&sums)[2], float& mean, float eps) {
    const float correction = sums[0] / WIDTH;
    mean += correction;
    return rsqrtf(fmaxf(sums[1] / WIDTH - correction * correction, 0.0f) + eps);
}

template <int T>
static __device__ __forceinline__ void from_registers(scalar_t* out, const scalar_t* x, const scalar_t* weight,
                                                      const scalar_t* bias, float eps, int thread,
                                                      float (*sum_scratch)[1], float (*square_scratch)[2]) {
    constexpr int PER_THREAD = (VECTORS + T - 1) / T;
    Raw row[PER_THREAD];
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i)
        if (VECTORS % T == 0 || thread + i * T < VECTORS) row[i] = load_once(x, thread + i * T);

    float sum[1] = {0.0f};
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i)
        if (VECTORS % T == 0 || thread + i * T < VECTORS) add_values(sum[0], row[i]);
    row_sum<T>(sum, sum_scratch);
    float mean = sum[0] / WIDTH;
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) forget(row[i]);

    float squares[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i)
        if (VECTORS % T == 0 || thread + i * T < VECTORS) add_deviations(squares, row[i], mean);
    row_sum<T>(squares, square_scratch);
    const float scale = finish(squares, mean, eps);
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) forget(row[i]);

#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
        const int v = thread + i * T;
        if (VECTORS % T == 0 || v < VECTORS)
            store(out, v, affine(row[i], load_shared(weight, v), load_shared(bias, v), mean, scale));
    }
}

template <int T>
static __device__ __forceinline__ void from_memory(scalar_t* out, const scalar_t* x, const scalar_t* weight,
                                                   const scalar_t* bias, float eps, int thread,
                                                   float (*sum_scratch)[1], float (*square_scratch)[2]) {
    float sum[1] = {0.0f};
    for (int v = thread; v < VECTORS; v += T) add_values(sum[0], load_shared(x, v));
    row_sum<T>(sum, sum_scratch);
    float mean = sum[0] / WIDTH;

    float squares[2] = {0.0f, 0.0f};
    for (int v = thread; v < VECTORS; v += T) add_deviations(squares, load_shared(x, v), mean);
    row_sum<T>(squares, square_scratch);
    const float scale = finish(squares, mean, eps);

    for (int v = thread; v < VECTORS; v += T)
        store(out, v, affine(load_once(x, v), load_shared(weight, v), load_shared(bias, v), mean, scale));
}

extern "C" __global__ void __launch_bounds__(THREADS)
layernorm_warp(scalar_t* out, const scalar_t* x, const scalar_t* weight, const scalar_t* bias, int64_t N, int64_t D,
               float eps, void* workspace) {
    // Not launched for wider rows, and not worth compiling for them.
    if constexpr (WIDTH * sizeof(scalar_t) <= WARP_BYTES) {
        const int64_t row = int64_t(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32;
        if (row >= N) return;
        constexpr int HELD = (VECTORS + 31) / 32 * HELD_BYTES;
        if constexpr (HELD <= REGISTER_BYTES)
            from_registers<32>(out + row * WIDTH, x + row * WIDTH, weight, bias, eps, threadIdx.x % 32, nullptr,
                               nullptr);
        else
            from_memory<32>(out + row * WIDTH, x + row * WIDTH, weight, bias, eps, threadIdx.x % 32, nullptr, nullptr);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
layernorm_block(scalar_t* out, const scalar_t* x, const scalar_t* weight, const scalar_t* bias, int64_t N, int64_t D,
                float eps, void* workspace) {
    if constexpr (WIDTH * sizeof(scalar_t) > WARP_BYTES) {
        __shared__ float sum_scratch[THREADS / 32][1], square_scratch[THREADS / 32][2];
        const int64_t row = blockIdx.x;
        constexpr int HELD = (VECTORS + THREADS - 1) / THREADS * HELD_BYTES;
        if constexpr (HELD <= REGISTER_BYTES)
            from_registers<THREADS>(out + row * WIDTH, x + row * WIDTH, weight, bias, eps, threadIdx.x, sum_scratch,
                                    square_scratch);
        else
            from_memory<THREADS>(out + row * WIDTH, x + row * WIDTH, weight, bias, eps, threadIdx.x, sum_scratch,
                                 square_scratch);
    }
}
