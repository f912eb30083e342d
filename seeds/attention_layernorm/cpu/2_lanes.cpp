// 2: flash attention with one query per vector lane (Sᵀ = K·Qᵀ, so that softmax needs no horizontal sums and nothing is packed);
// each head writes its columns of the joined rows, and a second loop normalises the rows in place while they are in cache.
// Any shape; needs no workspace. Beats 1 everywhere; loses where S is far below a block of QUERIES*lanes, which is padded.
// static: H D causal
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#ifndef QUERIES
#define QUERIES 4   // tune: 1 2 3 4
#endif
#ifndef KEYS
#define KEYS 6      // tune: 4 6 8 12
#endif
#ifndef ROWS
#define ROWS 4      // tune: 2 4 6 8
#endif
#ifndef TILE
#define TILE 64     // tune: 32 64 128 256
#endif
// tune-if: QUERIES*KEYS <= 24 and QUERIES*KEYS >= 8

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif
typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float vec_any __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

constexpr int D_ = STATIC_D;
constexpr int64_t WIDTH = int64_t(STATIC_H) * STATIC_D;  // of a joined row
constexpr int BLOCK = QUERIES * LANES;                      // queries worked on together
constexpr int KR = REGISTERS == 32 ? KEYS : (KEYS + 1) / 2; // keys per register tile of the score GEMM
constexpr int CHUNKS = (D_ + LANES - 1) / LANES;            // vectors per row of V
constexpr int VR = REGISTERS == 32 ? 4 : 2;                 // of which so many are in registers at a time
constexpr int PADDED = CHUNKS * LANES;
constexpr int DEPTH = 32;                                   // products summed in one chain: longer ones lose sharp softmaxes
constexpr float NEGATIVE_INFINITY = -std::numeric_limits<float>::infinity();

inline vec load(const float* p) { return *reinterpret_cast<const vec_any*>(p); }
inline void store(float* p, vec x) { *reinterpret_cast<vec_any*>(p) = x; }
inline vec fill(float x) { return vec{} + x; }
inline vec larger(vec a, vec b) { return a > b ? a : b; }

// 2^x for x <= 0, relative error about 1e-7; below the normal range, -inf included, 0.
inline vec exp2_nonpositive(vec x) {
    const ivec normal = x >= fill(-126.0f);
    const vec clamped = larger(x, fill(-126.0f));
    const vec magic = fill(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
    const vec shifted = clamped + magic;
    const vec r = clamped - (shifted - magic);
    vec p = fill(1.5403530e-4f);
    p = p * r + 1.3333558e-3f;
    p = p * r + 9.6181291e-3f;
    p = p * r + 5.5504109e-2f;
    p = p * r + 2.4022651e-1f;
    p = p * r + 6.9314718e-1f;
    p = p * r + 1.0f;
    const ivec exponent = ((ivec)shifted - (ivec)magic) << 23;
    return (vec)(((ivec)p + exponent) & normal);
}

// scores[j][query] = k[j]·q[query] for R keys; raises `top` to the largest. DIAGONAL: lanes whose query precedes key j get -inf.
template <int R, bool DIAGONAL>
inline void score_tile(const float* k, const float* qt, float* scores, vec* top, const float* query, int64_t key) {
    vec sum[R][QUERIES];
    for (int start = 0; start < D_; start += DEPTH) {
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int c = 0; c < QUERIES; ++c) sum[r][c] = vec{};
        for (int d = start; d < std::min(start + DEPTH, D_); ++d) {
            vec x[QUERIES];
            UNROLL for (int c = 0; c < QUERIES; ++c) x[c] = load(qt + d * BLOCK + c * LANES);
            UNROLL for (int r = 0; r < R; ++r) {
                const float y = k[r * D_ + d];
                UNROLL for (int c = 0; c < QUERIES; ++c) sum[r][c] += x[c] * y;
            }
        }
        if (start + DEPTH >= D_) break;
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int c = 0; c < QUERIES; ++c) {
                float* s = scores + r * BLOCK + c * LANES;
                store(s, start ? load(s) + sum[r][c] : sum[r][c]);
            }
    }
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int c = 0; c < QUERIES; ++c) {
            vec s = sum[r][c];
            if (D_ > DEPTH) s += load(scores + r * BLOCK + c * LANES);
            if (DIAGONAL) s = load(query + c * LANES) >= fill(float(key + r)) ? s : fill(NEGATIVE_INFINITY);
            top[c] = larger(s, top[c]);
            store(scores + r * BLOCK + c * LANES, s);
        }
}

template <int R, bool DIAGONAL>
inline void score_rest(int n, const float* k, const float* qt, float* scores, vec* top, const float* query, int64_t key) {
    if (n == R) return score_tile<R, DIAGONAL>(k, qt, scores, top, query, key);
    if constexpr (R > 1) score_rest<R - 1, DIAGONAL>(n, k, qt, scores, top, query, key);
}

template <bool DIAGONAL>
void score_block(int n, const float* k, const float* qt, float* scores, vec* top, const float* query, int64_t key) {
    int j = 0;
    for (; j + KR <= n; j += KR)
        score_tile<KR, DIAGONAL>(k + j * D_, qt, scores + j * BLOCK, top, query, key + j);
    if (j < n) score_rest<KR, DIAGONAL>(n - j, k + j * D_, qt, scores + j * BLOCK, top, query, key + j);
}

template <int C>
inline vec load_chunk(const float* row) {
    if constexpr ((C + 1) * LANES <= D_) return load(row + C * LANES);
    vec x = {};
    std::memcpy(&x, row + C * LANES, (D_ - C * LANES) * sizeof(float));
    return x;
}

template <int C, int W>
inline void load_chunks(const float* row, vec* x) {
    x[0] = load_chunk<C>(row);
    if constexpr (W > 1) load_chunks<C + 1, W - 1>(row, x + 1);
}

// acc[r] = acc[r]*rescale[r] + Σ p[j][r]·v[j] for R queries, over vectors C .. C+W-1 of a row.
template <int R, int C, int W>
inline void value_tile(int n, const float* v, const float* p, float* acc, const float* rescale) {
    vec sum[R][W] = {};
    for (int j = 0; j < n; ++j) {
        vec x[W];
        load_chunks<C, W>(v + j * D_, x);
        UNROLL for (int r = 0; r < R; ++r) {
            const float y = p[j * BLOCK + r];
            UNROLL for (int c = 0; c < W; ++c) sum[r][c] += x[c] * y;
        }
    }
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int c = 0; c < W; ++c) {
            float* a = acc + r * PADDED + (C + c) * LANES;
            store(a, load(a) * rescale[r] + sum[r][c]);
        }
}

template <int R, int C>
inline void value_columns(int n, const float* v, const float* p, float* acc, const float* rescale) {
    constexpr int W = C + VR <= CHUNKS ? VR : CHUNKS - C;
    value_tile<R, C, W>(n, v, p, acc, rescale);
    if constexpr (C + W < CHUNKS) value_columns<R, C + W>(n, v, p, acc, rescale);
}

void value_block(int n, int queries, const float* v, const float* p, float* acc, const float* rescale) {
    int i = 0;
    for (; i + ROWS <= queries; i += ROWS) value_columns<ROWS, 0>(n, v, p + i, acc + i * PADDED, rescale + i);
    for (; i < queries; ++i) value_columns<1, 0>(n, v, p + i, acc + i * PADDED, rescale + i);
}

// Queries i0 .. i0+queries-1 of one head; `out` is the head's first column of row 0.
void attend(float* out, const float* q, const float* k, const float* v, int64_t S, int64_t i0, int queries, float scale) {
    alignas(64) float qt[D_ * BLOCK], scores[TILE * BLOCK], acc[BLOCK * PADDED] = {}, rescale[BLOCK], query[BLOCK];
    // Scores stay unscaled until the largest is subtracted, which is exact: rounding them earlier would lose sharp softmaxes.
    const float sign = scale < 0 ? -1.0f : 1.0f;
    const float factor = std::max(std::abs(scale) * 1.44269504f, std::numeric_limits<float>::min());  // exp(x) as 2^x
    for (int i = 0; i < BLOCK; ++i) {
        query[i] = float(i0 + i);
        for (int d = 0; d < D_; ++d) qt[d * BLOCK + i] = i < queries ? q[(i0 + i) * D_ + d] * sign : 0.0f;
    }
    vec top[QUERIES], total[QUERIES];
    for (int c = 0; c < QUERIES; ++c) top[c] = fill(NEGATIVE_INFINITY), total[c] = vec{};

    const int64_t keys = STATIC_CAUSAL ? std::min(S, i0 + queries) : S;
    for (int64_t j0 = 0; j0 < keys; j0 += TILE) {
        const int n = int(std::min<int64_t>(TILE, keys - j0));
        vec before[QUERIES];
        for (int c = 0; c < QUERIES; ++c) before[c] = top[c];
        if (STATIC_CAUSAL && j0 + n > i0 + 1)
            score_block<true>(n, k + j0 * D_, qt, scores, top, query, j0);
        else
            score_block<false>(n, k + j0 * D_, qt, scores, top, query, j0);
        for (int c = 0; c < QUERIES; ++c) {
            const vec r = exp2_nonpositive((before[c] - top[c]) * factor);
            store(rescale + c * LANES, r);
            total[c] *= r;
        }
        vec sum[QUERIES] = {};
        for (int j = 0; j < n; ++j)
            UNROLL for (int c = 0; c < QUERIES; ++c) {
                const vec p = exp2_nonpositive((load(scores + j * BLOCK + c * LANES) - top[c]) * factor);
                sum[c] += p;
                store(scores + j * BLOCK + c * LANES, p);
            }
        for (int c = 0; c < QUERIES; ++c) total[c] += sum[c];
        value_block(n, queries, v + j0 * D_, scores, acc, rescale);
    }
    for (int c = 0; c < QUERIES; ++c) store(rescale + c * LANES, 1.0f / total[c]);
    for (int i = 0; i < queries; ++i)
        for (int d = 0; d < D_; ++d) out[(i0 + i) * WIDTH + d] = acc[i * PADDED + d] * rescale[i];
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
    const int64_t blocks = (S + BLOCK - 1) / BLOCK;
#pragma omp parallel
    {
        // The last block of a causal head is the longest: it goes first, so that the threads finish together.
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < B * H * blocks; ++t) {
            const int64_t head = t % (B * H), i0 = (blocks - 1 - t / (B * H)) * BLOCK, base = head * S * D_;
            float* columns = out + head / H * S * WIDTH + head % H * D_;
            attend(columns, q + base, k + base, v + base, S, i0, int(std::min<int64_t>(BLOCK, S - i0)), scale);
        }
#pragma omp for schedule(static)
        for (int64_t row = 0; row < B * S; ++row) normalise(out + row * WIDTH, weight, bias, eps);
    }
}
