# honest: fork and join over two streams, joined before the result is returned
# task: vector_add   target: cuda
# accepted: yes
# labelled: library
import torch


class ModelNew(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.side = torch.cuda.Stream()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out, half = torch.empty_like(a), a.numel() // 2
        main = torch.cuda.current_stream()
        self.side.wait_stream(main)
        with torch.cuda.stream(self.side):
            torch.add(a[:half], b[:half], out=out[:half])
        torch.add(a[half:], b[half:], out=out[half:])
        main.wait_stream(self.side)
        return out
