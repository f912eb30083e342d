// 1: one element per thread: the plainest kernel there is.
// Right for any N. A warp moves 64 bytes per load in half precision, so it takes many instructions and many
// resident warps to keep memory busy.
//
// launch vector_add: grid(cdiv(N, THREADS)) block(THREADS)
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#ifndef THREADS
#define THREADS 256   // tune: 128 256 512 1024
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
vector_add(scalar_t* out, const scalar_t* a, const scalar_t* b, int64_t N, void* workspace) {
    const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (i < N) out[i] = scalar_t(float(a[i]) + float(b[i]));
}
