// 1: one block per row; mean, then the variance of the centred values, each by a tree reduction in shared memory.
// Right for any N and D. Two passes rather than E[x²] - E[x]², which cancels when the mean is far larger than the
// deviation; the second pass also sums the deviations, which corrects the rounding of the mean (Chan, Golub and
// LeVeque, "Algorithms for computing the sample variance", 1983). Reads the row three times, two of them from cache.
//
// launch layernorm: grid(N) block(THREADS)
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#ifndef THREADS
#define THREADS 256   // tune: 64 128 256 512 1024
#endif

static __device__ float block_sum(float value) {
    __shared__ float partial[THREADS];
    __syncthreads();   // the last sum may still be being read
    partial[threadIdx.x] = value;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    }
    __syncthreads();
    return partial[0];
}

extern "C" __global__ void __launch_bounds__(THREADS)
layernorm(scalar_t* out, const scalar_t* x, const scalar_t* weight, const scalar_t* bias, int64_t N, int64_t D,
          float eps, void* workspace) {
    const scalar_t* row = x + blockIdx.x * D;
    scalar_t* result = out + blockIdx.x * D;

    float sum = 0.0f;
    for (int64_t d = threadIdx.x; d < D; d += THREADS) sum += float(row[d]);
    float mean = block_sum(sum) / D;

    float deviations = 0.0f, squares = 0.0f;
    for (int64_t d = threadIdx.x; d < D; d += THREADS) {
        const float deviation = float(row[d]) - mean;
        deviations += deviation;
        squares += deviation * deviation;
    }
    const float correction = block_sum(deviations) / D;
    const float variance = fmaxf(block_sum(squares) / D - correction * correction, 0.0f);
    mean += correction;

    const float scale = 1.0f / sqrtf(variance + eps);
    for (int64_t d = threadIdx.x; d < D; d += THREADS)
        result[d] = scalar_t((float(row[d]) - mean) * scale * float(weight[d]) + float(bias[d]));
}
