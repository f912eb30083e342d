#include <torch/extension.h>

torch::Tensor forward(torch::Tensor x, torch::Tensor weight, torch::Tensor bias) {
    const int64_t rows = x.size(0), depth = x.size(1), columns = weight.size(0);
    auto out = torch::empty({rows, columns}, x.options());
    const float* a = x.data_ptr<float>();
    const float* w = weight.data_ptr<float>();
    const float* b = bias.data_ptr<float>();
    float* y = out.data_ptr<float>();
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) {
            float sum = b[j];
            for (int64_t k = 0; k < depth; ++k) sum += a[i * depth + k] * w[j * depth + k];
            y[i * columns + j] = sum > 0 ? sum : 0;
        }
    return out;
}
