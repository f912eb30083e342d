// 2: flash decoding. The keys of each kv head are split into chunks, all query heads of the group share one read of K and V,
// and a second step combines the chunks. Bound by memory: it moves every filled key and value once and skips the empty rest.
// Any shape. On two shared x86 cores it was 1.2 to 1.35 times as fast as 1 where four query heads share K and V, and slower where
// each has its own.
// workspace: B*H*cdiv(L, CHUNK)*(D + 2)*4
// static: D H Hkv
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#ifndef CHUNK
#define CHUNK 256   // tune: 64 128 256 512 1024
#endif
#ifndef KEYS
#define KEYS 2      // tune: 1 2 4
#endif
#ifndef AHEAD
#define AHEAD 8     // tune: 0 4 8 16
#endif

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float vec __attribute__((vector_size(LANES * 4)));
typedef double wide __attribute__((vector_size(LANES * 4)));  // half as many lanes
typedef float half_any __attribute__((vector_size(LANES * 2), aligned(4), may_alias));
typedef float vec_any __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

constexpr int D_ = STATIC_D, GROUP = STATIC_H / STATIC_HKV;
constexpr int CHUNKS = (D_ + LANES - 1) / LANES, PADDED = CHUNKS * LANES;
constexpr int HALF = LANES / 2, HALVES = (D_ + HALF - 1) / HALF;
constexpr int TOGETHER = GROUP < 4 ? GROUP : 4;  // query heads held in registers together
constexpr int WIDE = 4;                          // vectors of V held together

inline vec load(const float* p) { return *reinterpret_cast<const vec_any*>(p); }
inline void store(float* p, vec x) { *reinterpret_cast<vec_any*>(p) = x; }

// Vector c of a row of D floats; past its end zeros.
inline vec load_chunk(const float* row, int c) {
    if (D_ % LANES == 0 || (c + 1) * LANES <= D_) return load(row + c * LANES);
    vec x = {};
    std::memcpy(&x, row + c * LANES, D_ % LANES * sizeof(float));
    return x;
}

// Lanes c*HALF .. of a row of D floats as doubles; past its end zeros.
inline wide load_wide(const float* row, int c) {
    if (D_ % HALF == 0 || (c + 1) * HALF <= D_) return __builtin_convertvector(*reinterpret_cast<const half_any*>(row + c * HALF), wide);
    wide x = {};
    for (int i = 0; i < D_ % HALF; ++i) x[i] = row[c * HALF + i];
    return x;
}

inline double sum(wide x) {
    double total = 0;
    for (int i = 0; i < HALF; ++i) total += x[i];
    return total;
}

// scores[g][j] for G query heads and R keys. In double, which hides behind the memory: sharp softmaxes need exact scores.
template <int G, int R>
inline void score_tile(const double* q, const float* k, double* scores) {
    wide acc[G][R] = {};
    for (int c = 0; c < HALVES; ++c) {
        wide key[R];
        UNROLL for (int r = 0; r < R; ++r) key[r] = load_wide(k + r * D_, c);
        UNROLL for (int g = 0; g < G; ++g) {
            const wide x = *reinterpret_cast<const wide*>(q + g * PADDED + c * HALF);
            UNROLL for (int r = 0; r < R; ++r) acc[g][r] += x * key[r];
        }
    }
    UNROLL for (int g = 0; g < G; ++g)
        UNROLL for (int r = 0; r < R; ++r) scores[g * CHUNK + r] = sum(acc[g][r]);
}

template <int G>
void score(int n, const double* q, const float* k, double* scores) {
    int j = 0;
    for (; j + KEYS <= n; j += KEYS) {
        if (AHEAD)
            for (int r = 0; r < KEYS; ++r)
                for (int d = 0; d < D_; d += 16)
                    __builtin_prefetch(k + std::min(j + AHEAD + r, n - 1) * D_ + d);
        score_tile<G, KEYS>(q, k + j * D_, scores + j);
    }
    for (; j < n; ++j) score_tile<G, 1>(q, k + j * D_, scores + j);
}

// acc[g] = Σ p[g][j]·v[j], over W vectors of the row from c on.
template <int G, int W>
inline void value_tile(int n, const float* v, const float* p, float* acc, int c) {
    vec total[G][W] = {};
    for (int j = 0; j < n; ++j) {
        vec x[W];
        UNROLL for (int w = 0; w < W; ++w) x[w] = load_chunk(v + j * D_, c + w);
        UNROLL for (int g = 0; g < G; ++g) {
            const float y = p[g * CHUNK + j];
            UNROLL for (int w = 0; w < W; ++w) total[g][w] += x[w] * y;
        }
    }
    UNROLL for (int g = 0; g < G; ++g)
        UNROLL for (int w = 0; w < W; ++w) store(acc + g * PADDED + (c + w) * LANES, total[g][w]);
}

template <int G>
void value(int n, const float* v, const float* p, float* acc) {
    int c = 0;
    for (; c + WIDE <= CHUNKS; c += WIDE) value_tile<G, WIDE>(n, v, p, acc, c);
    if constexpr (CHUNKS % WIDE != 0)
        for (; c < CHUNKS; ++c) value_tile<G, 1>(n, v, p, acc, c);
}

// Partial result of G query heads over n keys, `stride` floats apart: the sum of weighted values, the top score, the sum of weights.
template <int G>
void attend(int n, const float* q, const float* k, const float* v, float scale, float* partial, int64_t stride) {
    alignas(64) double query[G * PADDED] = {}, scores[G * CHUNK];
    alignas(64) float weights[G * CHUNK], acc[G * PADDED];
    for (int g = 0; g < G; ++g)
        for (int d = 0; d < D_; ++d) query[g * PADDED + d] = double(q[g * D_ + d]) * scale;
    score<G>(n, query, k, scores);
    for (int g = 0; g < G; ++g) {
        const double* s = scores + g * CHUNK;
        float *w = weights + g * CHUNK, *result = partial + g * stride, total = 0;
        const float top = float(*std::max_element(s, s + n));
        for (int j = 0; j < n; ++j) total += w[j] = std::exp(float(s[j] - top));
        result[D_] = top;
        result[D_ + 1] = total;
    }
    value<G>(n, v, weights, acc);
    for (int g = 0; g < G; ++g) std::memcpy(partial + g * stride, acc + g * PADDED, D_ * sizeof(float));
}

// The query heads of a group, TOGETHER at a time; the chunk is still in cache for the second batch.
void attend_group(int n, const float* q, const float* k, const float* v, float scale, float* partial, int64_t stride) {
    int g = 0;
    for (; g + TOGETHER <= GROUP; g += TOGETHER)
        attend<TOGETHER>(n, q + g * D_, k, v, scale, partial + g * stride, stride);
    if constexpr (GROUP % TOGETHER != 0)
        for (; g < GROUP; ++g) attend<1>(n, q + g * D_, k, v, scale, partial + g * stride, stride);
}

void combine(float* out, const float* partial, int64_t chunks) {
    float top = -std::numeric_limits<float>::infinity(), total = 0, acc[D_] = {};
    for (int64_t c = 0; c < chunks; ++c) top = std::max(top, partial[c * (D_ + 2) + D_]);
    for (int64_t c = 0; c < chunks; ++c) {
        const float* one = partial + c * (D_ + 2);
        const float weight = std::exp(one[D_] - top);
        total += weight * one[D_ + 1];
        for (int d = 0; d < D_; ++d) acc[d] += weight * one[d];
    }
    for (int d = 0; d < D_; ++d) out[d] = acc[d] / total;
}

}  // namespace

extern "C" void decode_attention(float* out, const float* q, const float* k_cache, const float* v_cache,
                                 const int32_t* input_pos, int64_t B, int64_t H, int64_t Hkv, int64_t L, int64_t D,
                                 float scale, void* workspace) {
    const int64_t most = (L + CHUNK - 1) / CHUNK, stride = most * (D_ + 2);
    float* partial = static_cast<float*>(workspace);  // [B*H][most][D + 2]
#pragma omp parallel
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < B * Hkv * most; ++t) {
            const int64_t head = t / most, chunk = t % most, position = input_pos[head / Hkv], start = chunk * CHUNK;
            if (start > position) continue;
            const float *k = k_cache + head * L * D_, *v = v_cache + head * L * D_;
            const int n = int(std::min<int64_t>(CHUNK, position + 1 - start));
            attend_group(n, q + head * GROUP * D_, k + start * D_, v + start * D_, scale,
                         partial + head * GROUP * stride + chunk * (D_ + 2), stride);
        }
#pragma omp for schedule(static)
        for (int64_t h = 0; h < B * H; ++h)
            combine(out + h * D_, partial + h * stride, input_pos[h / H] / CHUNK + 1);
    }
}
