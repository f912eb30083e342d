// honest: atomic additions into a workspace that the plan asks to be zeroed
// task: row_sum   target: cpu
// accepted: yes
// workspace: N*8
// zero: workspace
extern "C" void row_sum(float* out, const float* x, int64_t N, int64_t D, void* workspace) {
    double* sums = (double*)workspace;
#pragma omp parallel for collapse(2)
    for (int64_t n = 0; n < N; ++n)
        for (int64_t part = 0; part < 4; ++part) {
            double sum = 0;
            for (int64_t d = D * part / 4; d < D * (part + 1) / 4; ++d) sum += x[n * D + d];
#pragma omp atomic
            sums[n] += sum;
        }
    for (int64_t n = 0; n < N; ++n) out[n] = float(sums[n]);
}
