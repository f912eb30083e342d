// 2: 16 bytes per load and UNROLL independent loads of each operand in flight before the first use.
// Right for any N: the last N % (16 / itemsize) elements go one by one, and so does everything where a pointer is not
// 16-byte aligned. Meant to win over 1 once N fills the GPU; for small N both are a launch and little else.
//
// launch vector_add: grid(cdiv(N*itemsize, 16*UNROLL*THREADS)) block(THREADS)
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#ifndef THREADS
#define THREADS 256   // tune: 128 256 512
#endif
#ifndef UNROLL
#define UNROLL 2      // tune: 1 2 4 8
#endif

static constexpr int VECTOR = 16 / sizeof(scalar_t);

union Pack {
    uint4 raw;
    scalar_t value[VECTOR];
    __device__ Pack() {}
};

// Streaming: nothing here is used twice.
static __device__ __forceinline__ uint4 load(const scalar_t* source) {
    return __ldcs(reinterpret_cast<const uint4*>(source));
}

static __device__ __forceinline__ uint4 add(uint4 a, uint4 b) {
    Pack left, right, sum;
    left.raw = a;
    right.raw = b;
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) sum.value[e] = scalar_t(float(left.value[e]) + float(right.value[e]));
    return sum.raw;
}

static __device__ __forceinline__ bool aligned(const void* pointer) {
    return reinterpret_cast<uint64_t>(pointer) % 16 == 0;
}

extern "C" __global__ void __launch_bounds__(THREADS)
vector_add(scalar_t* out, const scalar_t* a, const scalar_t* b, int64_t N, void* workspace) {
    const int64_t begin = int64_t(blockIdx.x) * (UNROLL * THREADS * VECTOR);
    const int64_t end = min(N, begin + UNROLL * THREADS * VECTOR);
    const int64_t first = begin + threadIdx.x * VECTOR;
    const bool vectors = aligned(out) && aligned(a) && aligned(b);

    if (vectors) {
        uint4 left[UNROLL], right[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int64_t i = first + u * (THREADS * VECTOR);
            if (i + VECTOR <= end) {
                left[u] = load(a + i);
                right[u] = load(b + i);
            }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int64_t i = first + u * (THREADS * VECTOR);
            if (i + VECTOR <= end) __stcs(reinterpret_cast<uint4*>(out + i), add(left[u], right[u]));
        }
    }
    // Only the last block has a tail, unless the pointers are unaligned and everything is.
    const int64_t tail = vectors ? end - end % VECTOR : begin;
    for (int64_t i = tail + threadIdx.x; i < end; i += THREADS) out[i] = scalar_t(float(a[i]) + float(b[i]));
}
