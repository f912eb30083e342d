// 2: one read from memory. The mean is taken about the first element and carried with its rounding residue, the variance about
// the mean (the row is in L1 by then); the output leaves by streaming stores while the next row is prefetched.
// Any N and D; streams where D is a multiple of the vector (x86), else stores normally. Loses to 1 where the whole output
// fits in cache and is used at once.
// static: D
#include <cmath>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#ifndef STREAM
#define STREAM 1     // tune: 0 1
#endif
#ifndef PREFETCH
#define PREFETCH 1   // tune: 0 1 2
#endif
#ifndef ROWS
#define ROWS 16      // tune: 4 16 64
#endif

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
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
typedef float vec_any __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

constexpr int64_t D_ = STATIC_D;
constexpr int WAYS = 4;  // independent sums: enough to hide the latency of an addition
constexpr int64_t STEP = WAYS * LANES, WHOLE = D_ / STEP * STEP;
constexpr bool STREAMS = STREAM && D_ % LANES == 0;

inline vec load(const float* p) { return *reinterpret_cast<const vec_any*>(p); }

inline void put(float* p, vec x) {
#if defined(__AVX512F__)
    if (STREAMS) return _mm512_stream_ps(p, (__m512)x);
#elif defined(__AVX__)
    if (STREAMS) return _mm256_stream_ps(p, (__m256)x);
#endif
    *reinterpret_cast<vec_any*>(p) = x;
}

inline void fence() {
#if defined(__AVX__)
    if (STREAMS) _mm_sfence();
#endif
}

double total(const vec* parts) {
    double sum = 0;
    for (int w = 0; w < WAYS; ++w)
        for (int i = 0; i < LANES; ++i) sum += parts[w][i];
    return sum;
}

// Mean of (x - shift).
double mean_about(const float* x, float shift) {
    vec parts[WAYS] = {};
    for (int64_t d = 0; d < WHOLE; d += STEP)
        UNROLL for (int w = 0; w < WAYS; ++w) parts[w] += load(x + d + w * LANES) - shift;
    double sum = total(parts);
    for (int64_t d = WHOLE; d < D_; ++d) sum += x[d] - shift;
    return sum / double(D_);
}

// Mean of (x - centre)², corrected for the part of the centre that float cannot hold.
double variance_about(const float* x, float centre, double residue) {
    vec parts[WAYS] = {};
    for (int64_t d = 0; d < WHOLE; d += STEP)
        UNROLL for (int w = 0; w < WAYS; ++w) {
            const vec e = load(x + d + w * LANES) - centre;
            parts[w] += e * e;
        }
    double sum = total(parts);
    for (int64_t d = WHOLE; d < D_; ++d) sum += double(x[d] - centre) * (x[d] - centre);
    const double variance = sum / double(D_) - residue * residue;
    return variance > 0 ? variance : 0;
}

void normalise(float* out, const float* x, const float* next, const float* weight, const float* bias, float eps) {
    const double mean = x[0] + mean_about(x, x[0]);
    const float centre = float(mean), residue = float(mean - centre);
    const float rstd = float(1.0 / std::sqrt(variance_about(x, centre, residue) + eps));
    int64_t d = 0;
    for (; d + LANES <= D_; d += LANES) {
        if (PREFETCH) __builtin_prefetch(next + d);
        put(out + d, ((load(x + d) - centre) - residue) * rstd * load(weight + d) + load(bias + d));
    }
    if constexpr (D_ % LANES != 0)
        for (; d < D_; ++d) out[d] = ((x[d] - centre) - residue) * rstd * weight[d] + bias[d];
}

}  // namespace

extern "C" void layernorm(float* out, const float* x, const float* weight, const float* bias, int64_t N, int64_t D,
                          float eps, void* workspace) {
#pragma omp parallel
    {
#pragma omp for schedule(static, ROWS) nowait
        for (int64_t row = 0; row < N; ++row) {
            const int64_t next = row + PREFETCH < N ? row + PREFETCH : row;
            normalise(out + row * D_, x + row * D_, x + next * D_, weight, bias, eps);
        }
        fence();
    }
}
