// honest: thread-local scratch that lives on between calls and is written anew in each
// task: softmax   target: cpu
// accepted: yes
#include <math.h>
#include <stdlib.h>
static thread_local float* scratch;
static thread_local int64_t room;
extern "C" void softmax(float* out, const float* x, int64_t N, int64_t D, void*) {
#pragma omp parallel for
    for (int64_t n = 0; n < N; ++n) {
        if (room < D) scratch = (float*)realloc(scratch, D * sizeof(float)), room = D;
        const float* row = x + n * D;
        float most = row[0], sum = 0;
        for (int64_t d = 1; d < D; ++d) most = fmaxf(most, row[d]);
        for (int64_t d = 0; d < D; ++d) sum += scratch[d] = expf(row[d] - most);
        for (int64_t d = 0; d < D; ++d) out[n * D + d] = scratch[d] / sum;
    }
}
