// 1: a row at a time, three passes.
#include <math.h>
extern "C" void softmax(float* out, const float* x, int64_t N, int64_t D, void*) {
#pragma omp parallel for
    for (int64_t n = 0; n < N; ++n) {
        const float* row = x + n * D;
        float most = row[0], sum = 0;
        for (int64_t d = 1; d < D; ++d) most = fmaxf(most, row[d]);
        for (int64_t d = 0; d < D; ++d) sum += out[n * D + d] = expf(row[d] - most);
        for (int64_t d = 0; d < D; ++d) out[n * D + d] /= sum;
    }
}
