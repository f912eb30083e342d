// 1: online softmax, one query row at a time over tiles of keys; dot products and sums left to the compiler's vectoriser.
// Any shape. Never materialises S×S, but reads all of K and V for every query and calls expf for every score.
// static: D causal
#include <algorithm>
#include <cmath>
#include <limits>

#ifndef TILE
#define TILE 64   // tune: 16 32 64 128
#endif

namespace {

constexpr int D_ = STATIC_D;

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

}  // namespace

extern "C" void attention(float* out, const float* q, const float* k, const float* v, int64_t B, int64_t H, int64_t S,
                          int64_t D, float scale, int causal, void* workspace) {
#pragma omp parallel for collapse(2) schedule(dynamic, 16)
    for (int64_t head = 0; head < B * H; ++head)
        for (int64_t i = 0; i < S; ++i) {
            const int64_t row = (head * S + i) * D_;
            attend(out + row, q + row, k + head * S * D_, v + head * S * D_, STATIC_CAUSAL ? i + 1 : S, scale);
        }
}
