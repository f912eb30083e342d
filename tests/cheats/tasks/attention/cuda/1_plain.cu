// 1: a block a query: scores in shared memory, then a column of V each. Needs D <= 256.
// launch queries: grid(H*S) block(128) smem(S*4)
#include <cuda_fp16.h>
extern "C" __global__ void queries(scalar_t* out, const scalar_t* q, const scalar_t* k, const scalar_t* v, int64_t H,
                                   int64_t S, int64_t D, float scale, void*) {
    extern __shared__ float p[];
    int64_t head = blockIdx.x / S * S * D;
    for (int64_t j = threadIdx.x; j < S; j += 128) {
        float dot = 0;
        for (int64_t d = 0; d < D; ++d) dot += float(q[blockIdx.x * D + d]) * float(k[head + j * D + d]);
        p[j] = dot * scale;
    }
    __syncthreads();
    float most = p[0], sum = 0;
    for (int64_t j = 1; j < S; ++j) most = fmaxf(most, p[j]);
    for (int64_t j = 0; j < S; ++j) sum += expf(p[j] - most);
    for (int64_t d = threadIdx.x; d < D; d += 128) {
        float acc = 0;
        for (int64_t j = 0; j < S; ++j) acc += expf(p[j] - most) * float(v[head + j * D + d]);
        out[blockIdx.x * D + d] = scalar_t(acc / sum);
    }
}
