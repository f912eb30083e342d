// A row at a time: its maximum, the exponentials and their sum, then one multiplication.
#include <algorithm>
#include <cmath>

constexpr int64_t N = 1000;

extern "C" void softmax(float* out, const float* x, int64_t B, void* workspace) {
#pragma omp parallel for
    for (int64_t b = 0; b < B; ++b) {
        const float* row = x + b * N;
        float* to = out + b * N;
        float top = row[0], sum = 0;
        for (int64_t i = 1; i < N; ++i) top = std::max(top, row[i]);
        for (int64_t i = 0; i < N; ++i) to[i] = std::exp(row[i] - top);
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < N; ++i) sum += to[i];
        for (int64_t i = 0; i < N; ++i) to[i] /= sum;
    }
}
