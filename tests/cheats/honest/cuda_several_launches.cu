// honest: fork and join without streams: two launches for the halves, a third under a condition for what is left
// task: vector_add   target: cuda
// accepted: yes
// launch lower: grid(cdiv(N//2, 256)) block(256) when(N >= 2)
// launch upper: grid(cdiv(N//2, 256)) block(256) when(N >= 2)
// launch odd: grid(1) block(1) when(N % 2 == 1)
#include <cuda_fp16.h>
extern "C" __global__ void lower(scalar_t* out, const scalar_t* a, const scalar_t* b, int64_t N, void*) {
    int64_t i = blockIdx.x * 256ll + threadIdx.x;
    if (i < N / 2) out[i] = scalar_t(float(a[i]) + float(b[i]));
}
extern "C" __global__ void upper(scalar_t* out, const scalar_t* a, const scalar_t* b, int64_t N, void*) {
    int64_t i = N / 2 + blockIdx.x * 256ll + threadIdx.x;
    if (i < N / 2 * 2) out[i] = scalar_t(float(a[i]) + float(b[i]));
}
extern "C" __global__ void odd(scalar_t* out, const scalar_t* a, const scalar_t* b, int64_t N, void*) {
    out[N - 1] = scalar_t(float(a[N - 1]) + float(b[N - 1]));
}
