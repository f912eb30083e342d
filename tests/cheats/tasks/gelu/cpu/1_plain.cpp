// 1: erf for every element, in double precision.
#include <math.h>
extern "C" void gelu(float* out, const float* x, int64_t N, void*) {
#pragma omp parallel for
    for (int64_t i = 0; i < N; ++i) out[i] = float(0.5 * x[i] * erfc(-x[i] * 0.70710678118654752));
}
