"""LayerNorm for the CPU, of parts that can be exchanged: real code, and real ways to be wrong.

`half_precise` cancels where the mean is large, `vectors` leaves out the tail of odd rows: the judge refuses both. The
kernel at the start is one thread with plain loops. Not covered: anything beyond these parts.
"""

from __future__ import annotations

from agent import tasks
from bench.peers.family import Family, Genome
from sandbox.contract import Task

AXES = {"N": 256, "D": 1024}
"""Of the one workload that is timed."""

_TEMPLATE = """\
// LayerNorm, of parts that can be exchanged.
// EVOLVE-BLOCK-START
#include <cmath>
#include <immintrin.h>

@knobs

extern "C" void layernorm(float* out, const float* x, const float* weight, const float* bias, int64_t N, int64_t D,
                          float eps, void* workspace) {
@loop
        const float* in = x + row * D;
        float* to = out + row * D;
@ahead
@moments
@affine
@output
    }
@end
}
// EVOLVE-BLOCK-END
"""

_LOOP = "    for (int64_t row = 0; row < N; ++row) {"
_PARTS = {
    "loop": {
        "one_thread": _LOOP,
        "static": f"#pragma omp parallel for schedule(static, ROWS)\n{_LOOP}",
        "dynamic": f"#pragma omp parallel for schedule(dynamic, ROWS)\n{_LOOP}",
    },
    "ahead": {
        "nothing": "",
        "prefetch": """
        if (row + AHEAD < N)
            for (int64_t d = 0; d < D; d += 16) _mm_prefetch((const char*)(in + AHEAD * D + d), _MM_HINT_T0);
""",
    },
    "moments": {
        "two_passes": """
        double sum = 0, squares = 0;
        for (int64_t d = 0; d < D; ++d) sum += in[d];
        const double mean = sum / double(D);
        for (int64_t d = 0; d < D; ++d) squares += (in[d] - mean) * (in[d] - mean);
        const double rstd = 1.0 / std::sqrt(squares / double(D) + eps);
""",
        "two_passes_simd": """
        double sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < D; ++d) sum += in[d];
        const double mean = sum / double(D);
#pragma omp simd reduction(+ : squares)
        for (int64_t d = 0; d < D; ++d) squares += (in[d] - mean) * (in[d] - mean);
        const double rstd = 1.0 / std::sqrt(squares / double(D) + eps);
""",
        "about_the_first": """
        const double first = in[0];
        double sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum, squares)
        for (int64_t d = 0; d < D; ++d) {
            const double off = in[d] - first;
            sum += off;
            squares += off * off;
        }
        const double mean = first + sum / double(D);
        const double spread = squares / double(D) - (sum / double(D)) * (sum / double(D));
        const double rstd = 1.0 / std::sqrt((spread > 0 ? spread : 0) + eps);
""",
        "half_precise": """
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum, squares)
        for (int64_t d = 0; d < D; ++d) {
            sum += in[d];
            squares += in[d] * in[d];
        }
        const float mean = sum / float(D);
        const float rstd = 1.0f / std::sqrt(squares / float(D) - mean * mean + eps);
""",
    },
    "affine": {
        "in_double": """
        auto normal = [=](float v, float w, float b) { return float((v - mean) * rstd) * w + b; };
""",
        "in_float": """
        const float centre = float(mean), residue = float(mean - centre), scale = float(rstd);
        auto normal = [=](float v, float w, float b) { return ((v - centre) - residue) * scale * w + b; };
""",
    },
    "output": {
        "plain": "        for (int64_t d = 0; d < D; ++d) to[d] = normal(in[d], weight[d], bias[d]);",
        "simd": """
#pragma omp simd
        for (int64_t d = 0; d < D; ++d) to[d] = normal(in[d], weight[d], bias[d]);
""",
        "streamed": """
        const int64_t whole = D % 8 == 0 ? D : 0;
        for (int64_t d = 0; d < whole; d += 8) {
            alignas(32) float ready[8];
#pragma omp simd
            for (int i = 0; i < 8; ++i) ready[i] = normal(in[d + i], weight[d + i], bias[d + i]);
            _mm256_stream_ps(to + d, _mm256_load_ps(ready));
        }
        for (int64_t d = whole; d < D; ++d) to[d] = normal(in[d], weight[d], bias[d]);
        _mm_sfence();
""",
        "vectors": """
        for (int64_t d = 0; d + 8 <= D; d += 8) {
#pragma omp simd
            for (int i = 0; i < 8; ++i) to[d + i] = normal(in[d + i], weight[d + i], bias[d + i]);
        }
""",
    },
}
_KNOBS = {"ROWS": (1, 2, 4, 8, 16, 32, 64), "AHEAD": (1, 2, 3, 4, 8)}


def family() -> Family:
    return Family(
        _TEMPLATE,
        _PARTS,
        _KNOBS,
        Genome({name: next(iter(options)) for name, options in _PARTS.items()}, {"ROWS": 1, "AHEAD": 1}),
    )


def task() -> Task:
    """LayerNorm with one workload, so that a verdict takes about a second; what is held out stays."""
    loaded = tasks.load("layernorm", "cpu")
    workload = loaded.workloads[0].model_copy(update={"axes": AXES})
    return loaded.model_copy(update={"workloads": (workload,)})
