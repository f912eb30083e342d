// 1: a thread an element.
// launch add: grid(cdiv(N, 256)) block(256)
#include <cuda_fp16.h>
extern "C" __global__ void add(scalar_t* out, const scalar_t* a, const scalar_t* b, int64_t N, void*) {
    int64_t i = blockIdx.x * 256ll + threadIdx.x;
    if (i < N) out[i] = scalar_t(float(a[i]) + float(b[i]));
}
