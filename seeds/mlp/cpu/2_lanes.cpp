// 2: one token per vector lane. Tokens are transposed once into panels; weights are read in place and broadcast, so nothing
// of them is packed, and the hidden values come out transposed, which is how the second product wants them.
// Any shape. A single token takes a path of its own, dot products along the rows. With 2 to 8 tokens most lanes are padding,
// which costs little as long as the weights come from memory.
// workspace: cdiv(M, 32)*32*(K + N)*4
// static: M K N
#include <algorithm>
#include <cmath>

#ifndef PANELS
#define PANELS 2    // tune: 1 2
#endif
#ifndef OUTPUTS
#define OUTPUTS 12  // tune: 4 6 8 12 24
#endif
#ifndef DEPTH
#define DEPTH 512   // tune: 256 512 1024 4096
#endif
#ifndef BLOCK
#define BLOCK 256   // tune: 64 128 256 512
#endif
// tune-if: PANELS*OUTPUTS <= 24 and PANELS*OUTPUTS >= 8

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

constexpr int64_t M_ = STATIC_M, K_ = STATIC_K, N_ = STATIC_N;
constexpr int P = M_ <= LANES ? 1 : PANELS;        // vectors of tokens in registers
constexpr int WIDTH = P * LANES;                   // tokens of a panel
constexpr int R = (REGISTERS == 32 ? OUTPUTS : (OUTPUTS + 1) / 2) / 2 * 2;  // weight rows in registers, even
constexpr int64_t COUNT = (M_ + WIDTH - 1) / WIDTH;              // panels
constexpr int64_t TOGETHER = BLOCK / WIDTH > 0 ? BLOCK / WIDTH : 1;  // panels worked on while their tokens stay in cache

inline vec load(const float* p) { return *reinterpret_cast<const vec_any*>(p); }
inline void store(float* p, vec x) { *reinterpret_cast<vec_any*>(p) = x; }

inline float silu(float x) { return x / (1.0f + std::exp(-x)); }

// sum[r] += Σ rows[r][d]·panel[d] for d < depth; panel is [depth][WIDTH].
template <int ROWS>
inline void multiply(const float* const* rows, const float* panel, int64_t depth, vec (*sum)[P]) {
    vec acc[ROWS][P];
    UNROLL for (int r = 0; r < ROWS; ++r)
        UNROLL for (int p = 0; p < P; ++p) acc[r][p] = sum[r][p];
    const float* row[ROWS];
    UNROLL for (int r = 0; r < ROWS; ++r) row[r] = rows[r];
    for (int64_t d = 0; d < depth; ++d) {
        vec x[P];
        UNROLL for (int p = 0; p < P; ++p) x[p] = load(panel + d * WIDTH + p * LANES);
        UNROLL for (int r = 0; r < ROWS; ++r) {
            const float w = row[r][d];
            UNROLL for (int p = 0; p < P; ++p) acc[r][p] += x[p] * w;
        }
    }
    UNROLL for (int r = 0; r < ROWS; ++r)
        UNROLL for (int p = 0; p < P; ++p) sum[r][p] = acc[r][p];
}

void transpose_panel(float* panel, const float* x, int64_t m0) {
    for (int64_t d = 0; d < K_; ++d)
        for (int64_t i = 0; i < WIDTH; ++i) panel[d * WIDTH + i] = m0 + i < M_ ? x[(m0 + i) * K_ + d] : 0.0f;
}

// Hidden rows n .. n+count-1 of a panel; a tile past the last row repeats it and keeps `count`.
void hidden_tile(float* hidden, const float* panel, const float* gate, const float* up, int64_t n, int64_t count) {
    const float* rows[R];
    vec sum[R][P] = {};
    for (int r = 0; r < R / 2; ++r) {
        rows[r] = gate + std::min(n + r, N_ - 1) * K_;
        rows[R / 2 + r] = up + std::min(n + r, N_ - 1) * K_;
    }
    for (int64_t d = 0; d < K_; d += DEPTH) {
        multiply<R>(rows, panel + d * WIDTH, std::min<int64_t>(DEPTH, K_ - d), sum);
        for (int r = 0; r < R; ++r) rows[r] += DEPTH;
    }
    for (int r = 0; r < count; ++r)
        for (int p = 0; p < P; ++p) {
            const vec g = sum[r][p], u = sum[R / 2 + r][p];
            float* h = hidden + (n + r) * WIDTH + p * LANES;
            for (int i = 0; i < LANES; ++i) h[i] = silu(g[i]) * u[i];
        }
}

void output_tile(float* out, const float* hidden, const float* down, int64_t k, int64_t count, int64_t m0) {
    const float* rows[R];
    vec sum[R][P] = {};
    for (int r = 0; r < R; ++r) rows[r] = down + std::min(k + r, K_ - 1) * N_;
    for (int64_t d = 0; d < N_; d += DEPTH) {
        vec part[R][P] = {};
        multiply<R>(rows, hidden + d * WIDTH, std::min<int64_t>(DEPTH, N_ - d), part);
        for (int r = 0; r < R; ++r) {
            rows[r] += DEPTH;
            for (int p = 0; p < P; ++p) sum[r][p] += part[r][p];
        }
    }
    for (int64_t i = 0; i < std::min<int64_t>(WIDTH, M_ - m0); ++i)
        for (int r = 0; r < count; ++r) out[(m0 + i) * K_ + k + r] = sum[r][i / LANES][i % LANES];
}

template <int64_t LENGTH>
float dot(const float* a, const float* b) {
    constexpr int WAYS = 4;
    vec part[WAYS] = {};
    int64_t i = 0;
    for (; i + WAYS * LANES <= LENGTH; i += WAYS * LANES)
        UNROLL for (int w = 0; w < WAYS; ++w) part[w] += load(a + i + w * LANES) * load(b + i + w * LANES);
    const vec whole = (part[0] + part[1]) + (part[2] + part[3]);
    float sum = 0;
    for (int l = 0; l < LANES; ++l) sum += whole[l];
    if constexpr (LENGTH % (WAYS * LANES) != 0)
        for (; i < LENGTH; ++i) sum += a[i] * b[i];
    return sum;
}

void one_token(float* out, const float* x, const float* gate, const float* up, const float* down, float* hidden) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N_; ++n) hidden[n] = silu(dot<K_>(x, gate + n * K_)) * dot<K_>(x, up + n * K_);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < K_; ++k) out[k] = dot<N_>(hidden, down + k * N_);
    }
}

}  // namespace

extern "C" void mlp(float* out, const float* x, const float* gate, const float* up, const float* down, int64_t M,
                    int64_t K, int64_t N, void* workspace) {
    float* panels = static_cast<float*>(workspace);   // [COUNT][K][WIDTH]
    float* hidden = panels + COUNT * WIDTH * K_;      // [COUNT][N][WIDTH]
    if (M_ == 1) return one_token(out, x, gate, up, down, hidden);
    const int64_t hidden_tiles = (N_ + R / 2 - 1) / (R / 2), output_tiles = (K_ + R - 1) / R;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t c = 0; c < COUNT; ++c) transpose_panel(panels + c * WIDTH * K_, x, c * WIDTH);
        for (int64_t c0 = 0; c0 < COUNT; c0 += TOGETHER) {
            const int64_t end = std::min<int64_t>(c0 + TOGETHER, COUNT);
#pragma omp for schedule(static) nowait
            for (int64_t t = 0; t < hidden_tiles; ++t) {
                const int64_t n = t * (R / 2), count = std::min<int64_t>(R / 2, N_ - n);
                for (int64_t c = c0; c < end; ++c)
                    hidden_tile(hidden + c * WIDTH * N_, panels + c * WIDTH * K_, gate, up, n, count);
            }
        }
#pragma omp barrier
        for (int64_t c0 = 0; c0 < COUNT; c0 += TOGETHER) {
            const int64_t end = std::min<int64_t>(c0 + TOGETHER, COUNT);
#pragma omp for schedule(static) nowait
            for (int64_t t = 0; t < output_tiles; ++t) {
                const int64_t k = t * R, count = std::min<int64_t>(R, K_ - k);
                for (int64_t c = c0; c < end; ++c) output_tile(out, hidden + c * WIDTH * N_, down, k, count, c * WIDTH);
            }
        }
    }
}
