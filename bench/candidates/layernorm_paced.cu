// LayerNorm with a brake: EXTRA of 10,000 columns are written twice, in every row. For tests of the promotion gate.
// Every warp is slowed alike: a row done twice would be waited for by all the others.
//
// launch layernorm: grid(min(cdiv(N, 8), 8*sm_count)) block(256)
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define EXTRA 0

static __device__ float warp_sum(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

static __device__ void normalise(scalar_t* out, const scalar_t* in, const scalar_t* weight, const scalar_t* bias,
                                 int64_t D, float eps) {
    const int lane = threadIdx.x % 32;
    float sum = 0.0f;
    for (int64_t d = lane; d < D; d += 32) sum += float(in[d]);
    float mean = warp_sum(sum) / D;
    float deviations = 0.0f, squares = 0.0f;
    for (int64_t d = lane; d < D; d += 32) {
        const float deviation = float(in[d]) - mean;
        deviations += deviation;
        squares += deviation * deviation;
    }
    const float correction = warp_sum(deviations) / D;
    const float variance = fmaxf(warp_sum(squares) / D - correction * correction, 0.0f);
    mean += correction;
    const float scale = 1.0f / sqrtf(variance + eps);
    for (int64_t d = lane; d < D; d += 32)
        out[d] = scalar_t((float(in[d]) - mean) * scale * float(weight[d]) + float(bias[d]));
    for (int64_t d = lane; d < D * EXTRA / 10000; d += 32)
        out[d] = scalar_t((float(in[d]) - mean) * scale * float(weight[d]) + float(bias[d]));
}

extern "C" __global__ void __launch_bounds__(256)
layernorm(scalar_t* out, const scalar_t* x, const scalar_t* weight, const scalar_t* bias, int64_t N, int64_t D,
          float eps, void* workspace) {
    const int64_t warps = int64_t(gridDim.x) * 8;
    for (int64_t row = blockIdx.x * 8 + threadIdx.x / 32; row < N; row += warps)
        normalise(out + row * D, x + row * D, weight, bias, D, eps);
}
