# honest: a custom C++ operator through load_inline
# task: vector_add   target: cpu
# accepted: yes
# slow: the headers of torch
import torch
from torch.utils.cpp_extension import load_inline

SOURCE = """
torch::Tensor add(torch::Tensor a, torch::Tensor b) {
    auto out = torch::empty_like(a);
    for (int64_t i = 0; i < a.numel(); ++i) out.data_ptr<float>()[i] = a.data_ptr<float>()[i] + b.data_ptr<float>()[i];
    return out;
}
"""
extension = load_inline("honest_add", SOURCE, functions=["add"])


class ModelNew(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return extension.add(a, b)
