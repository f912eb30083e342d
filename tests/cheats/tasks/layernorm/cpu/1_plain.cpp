// 1: a row at a time: mean, variance, result.
#include <math.h>
extern "C" void layernorm(float* out, const float* x, const float* weight, const float* bias, int64_t N, int64_t D,
                          float eps, void*) {
#pragma omp parallel for
    for (int64_t n = 0; n < N; ++n) {
        const float* row = x + n * D;
        double mean = 0, variance = 0;
        for (int64_t d = 0; d < D; ++d) mean += row[d];
        mean /= D;
        for (int64_t d = 0; d < D; ++d) variance += (row[d] - mean) * (row[d] - mean);
        double inverse = 1 / sqrt(variance / D + eps);
        for (int64_t d = 0; d < D; ++d) out[n * D + d] = float((row[d] - mean) * inverse) * weight[d] + bias[d];
    }
}
