// honest: threads of its own, started and joined within the call
// task: vector_add   target: cpu
// accepted: yes
#include <pthread.h>
struct Part { float* out; const float *a, *b; int64_t N; };
static void* add(void* given) {
    Part& part = *(Part*)given;
    for (int64_t i = 0; i < part.N; ++i) part.out[i] = part.a[i] + part.b[i];
    return nullptr;
}
extern "C" void vector_add(float* out, const float* a, const float* b, int64_t N, void*) {
    pthread_t thread;
    int64_t half = N / 2;
    Part first = {out, a, b, half}, second = {out + half, a + half, b + half, N - half};
    pthread_create(&thread, nullptr, add, &first);
    add(&second);
    pthread_join(thread, nullptr);
}
