// 1: one task per sequence and kv head: online softmax over tiles of keys for each of its query heads.
// Any shape. The query heads of a group read K and V again each; few tasks where B*Hkv is small.
// static: D
#include <algorithm>
#include <cmath>
#include <limits>

#ifndef TILE
#define TILE 64   // tune: 16 32 64 128
#endif

namespace {

constexpr int D_ = STATIC_D;

float dot(const float* a, const float* b) {
    double sum = 0;  // as the cache comes from memory, double costs nothing, and sharp softmaxes need it
#pragma omp simd reduction(+ : sum)
    for (int d = 0; d < D_; ++d) sum += double(a[d]) * b[d];
    return float(sum);
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

extern "C" void decode_attention(float* out, const float* q, const float* k_cache, const float* v_cache,
                                 const int32_t* input_pos, int64_t B, int64_t H, int64_t Hkv, int64_t L, int64_t D,
                                 float scale, void* workspace) {
    const int64_t group = H / Hkv;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t t = 0; t < B * Hkv; ++t) {
        const int64_t b = t / Hkv, position = input_pos[b];
        const float *k = k_cache + t * L * D_, *v = v_cache + t * L * D_;
        for (int64_t h = t * group; h < (t + 1) * group; ++h)
            attend(out + h * D_, q + h * D_, k, v, position + 1, scale);
    }
}
