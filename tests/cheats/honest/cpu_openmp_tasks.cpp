// honest: recursive OpenMP tasks
// task: vector_add   target: cpu
// accepted: yes
static void add(float* out, const float* a, const float* b, int64_t N) {
    if (N <= 4096) {
        for (int64_t i = 0; i < N; ++i) out[i] = a[i] + b[i];
        return;
    }
    int64_t half = N / 2;
#pragma omp task
    add(out, a, b, half);
    add(out + half, a + half, b + half, N - half);
}
extern "C" void vector_add(float* out, const float* a, const float* b, int64_t N, void*) {
#pragma omp parallel
#pragma omp single
    add(out, a, b, N);
}
