// A row at a time: its mean first, then the variance about it, both in double.
#include <cmath>

constexpr int64_t N = 384, ROWS = 16;

extern "C" void layer_norm(float* out, const float* x, const float* norm_weight, const float* norm_bias, int64_t B,
                           void* workspace) {
#pragma omp parallel for
    for (int64_t r = 0; r < B * ROWS; ++r) {
        const float* row = x + r * N;
        double sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < N; ++i) sum += row[i];
        const double mean = sum / N;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < N; ++i) squares += (row[i] - mean) * (row[i] - mean);
        const double scale = 1.0 / std::sqrt(squares / N + 1e-5);
        for (int64_t i = 0; i < N; ++i) out[r * N + i] = float((row[i] - mean) * scale) * norm_weight[i] + norm_bias[i];
    }
}
