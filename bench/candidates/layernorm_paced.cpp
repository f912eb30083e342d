// LayerNorm with a brake: EXTRA of 10,000 rows, evenly spread, are done twice. For tests of the promotion gate.
// Every row is done PASSES times: memory that no call has seen is soon used up, and a block of calls would be too short.
#include <cmath>

#define EXTRA 0
#define PASSES 8

namespace {

void normalise(float* out, const float* in, const float* weight, const float* bias, int64_t D, float eps) {
    double sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < D; ++d) sum += in[d];
    const double mean = sum / double(D);
#pragma omp simd reduction(+ : squares)
    for (int64_t d = 0; d < D; ++d) squares += (in[d] - mean) * (in[d] - mean);
    const double rstd = 1.0 / std::sqrt(squares / double(D) + eps);
#pragma omp simd
    for (int64_t d = 0; d < D; ++d) out[d] = float((in[d] - mean) * rstd) * weight[d] + bias[d];
}

}  // namespace

extern "C" void layernorm(float* out, const float* x, const float* weight, const float* bias, int64_t N, int64_t D,
                          float eps, void* workspace) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < N; ++row) {
        const int64_t times = 1 + (((row + 1) * EXTRA) / 10000 - (row * EXTRA) / 10000);
        for (int64_t i = 0; i < times * PASSES; ++i) normalise(out + row * D, x + row * D, weight, bias, D, eps);
    }
}
