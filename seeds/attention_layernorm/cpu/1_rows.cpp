// 1: one joined row at a time: online softmax for each of its heads, then LayerNorm while the row is in L1.
// Any shape. Never materialises S×S, but reads all of K and V for every query and calls expf for every score.
// static: H D causal
#include <algorithm>
#include <cmath>
#include <limits>

#ifndef TILE
#define TILE 64   // tune: 16 32 64 128
#endif

namespace {

constexpr int D_ = STATIC_D;
constexpr int64_t WIDTH = int64_t(STATIC_H) * STATIC_D;  // of a joined row

float dot(const float* a, const float* b) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int d = 0; d < D_; ++d) sum += a[d] * b[d];
    return sum;
}

void attend(float* out, const float* q, const float* k, const float* v, int64_t keys, float scale) {
    float accumulated[D_] = {}, tile[D_], score[TILE];
    float highest = -std::numeric_limits<float>::infinity(), total = 0;
    for (int64_t j0 = 0; j0 < keys; j0 += TILE) {
        const int n = int(std::min<int64_t>(TILE, keys - j0));
        float top = highest;
        for (int j = 0; j < n; ++j) {
            score[j] = dot(q, k + (j0 + j) * D_) * scale;
            top = std::max(top, score[j]);
        }
        const float rescale = std::exp(highest - top);
        highest = top;
        float sum = 0;
        std::fill(tile, tile + D_, 0.0f);  // a sum per tile loses less than one long chain
        for (int j = 0; j < n; ++j) {
            const float p = std::exp(score[j] - top);
            const float* row = v + (j0 + j) * D_;
            sum += p;
#pragma omp simd
            for (int d = 0; d < D_; ++d) tile[d] += p * row[d];
        }
        total = total * rescale + sum;
#pragma omp simd
        for (int d = 0; d < D_; ++d) accumulated[d] = accumulated[d] * rescale + tile[d];
    }
    for (int d = 0; d < D_; ++d) out[d] = accumulated[d] / total;
}

// Mean and variance in double: the yardstick is a two-pass LayerNorm, and a row costs little beside its attention.
void normalise(float* row, const float* weight, const float* bias, float eps) {
    double sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < WIDTH; ++c) sum += row[c];
    const double mean = sum / double(WIDTH);
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < WIDTH; ++c) squares += (row[c] - mean) * (row[c] - mean);
    const double rstd = 1.0 / std::sqrt(squares / double(WIDTH) + eps);
#pragma omp simd
    for (int64_t c = 0; c < WIDTH; ++c) row[c] = float((row[c] - mean) * rstd) * weight[c] + bias[c];
}

}  // namespace

extern "C" void attention_layernorm(float* out, const float* q, const float* k, const float* v, const float* weight,
                                    const float* bias, int64_t B, int64_t H, int64_t S, int64_t D, float scale,
                                    int causal, float eps, void* workspace) {
#pragma omp parallel for collapse(2) schedule(dynamic, 4)
    for (int64_t b = 0; b < B; ++b)
        for (int64_t i = 0; i < S; ++i) {
            float* row = out + (b * S + i) * WIDTH;
            for (int64_t h = 0; h < H; ++h) {
                const int64_t head = (b * H + h) * S * D_;
                attend(row + h * D_, q + head + i * D_, k + head, v + head, STATIC_CAUSAL ? i + 1 : S, scale);
            }
            normalise(row, weight, bias, eps);
        }
}
