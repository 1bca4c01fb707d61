"""Time of one training step of `pt_rag`: 16 sets of 32 cells, 500 genes, 16 candidates.

python benchmarks/pt_rag_step.py
"""

from __future__ import annotations

import time

import numpy as np
import torch

from ragst_sd.retrieval.pt_rag_model import PtRag, energy_distance


def main(sets: int = 16, cells: int = 32, genes: int = 500, candidates: int = 16, width: int = 64) -> None:
    """Print the median of twenty steps."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    net = PtRag(genes, width, width, 2, 4, per_cell=False)
    optimiser = torch.optim.AdamW(net.parameters())
    x, y = torch.randn(sets, cells, genes), torch.randn(sets, cells, genes)
    e, others = torch.randn(sets, width), torch.randn(sets, candidates, width)
    absent = torch.zeros(sets, candidates, dtype=torch.bool)
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        optimiser.zero_grad()
        response, chosen, _ = net(x, e, others, absent, 0.5)
        (energy_distance(x + response, y).mean() + 0.1 * chosen.mean()).backward()
        optimiser.step()
        taken.append(time.perf_counter() - start)
    print(f"{sets} sets x {cells} cells x {genes} genes, K = {candidates}: {1e3 * np.median(taken):.1f} ms a step")


if __name__ == "__main__":
    main()
