// 1: mean, then variance about the mean, then the output: three passes over a row that stays in cache. Any N and D.
// Sums in double: exact where the mean is far larger than the spread; loses memory time to stores that read the lines they overwrite.
#include <cmath>

#ifndef ROWS
#define ROWS 8   // tune: 1 8 32
#endif

extern "C" void layernorm(float* out, const float* x, const float* weight, const float* bias, int64_t N, int64_t D,
                          float eps, void* workspace) {
#pragma omp parallel for schedule(static, ROWS)
    for (int64_t row = 0; row < N; ++row) {
        const float* in = x + row * D;
        double sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < D; ++d) sum += in[d];
        const double mean = sum / double(D);
#pragma omp simd reduction(+ : squares)
        for (int64_t d = 0; d < D; ++d) squares += (in[d] - mean) * (in[d] - mean);
        const double rstd = 1.0 / std::sqrt(squares / double(D) + eps);
#pragma omp simd
        for (int64_t d = 0; d < D; ++d) out[row * D + d] = float((in[d] - mean) * rstd) * weight[d] + bias[d];
    }
}
