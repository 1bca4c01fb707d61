"""Time of one training step of `pt_rag`: 16 sets of 32 cells, 500 genes, 16 candidates.

python benchmarks/pt_rag_step.py
"""

from __future__ import annotations

import time

import numpy as np
import torch
from lines import as_table, row

from ragst_sd.retrieval.pt_rag_model import PtRag, energy_distance


def results(
    *, sets: int = 16, cells: int = 32, genes: int = 500, candidates: int = 16, width: int = 64, steps: int = 20
) -> list[dict]:
    """Rows name, value, target, unit, passed: the median of some steps."""
    torch.manual_seed(0)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    net = PtRag(genes, width, width, 2, 4, per_cell=False)
    optimiser = torch.optim.AdamW(net.parameters())
    x, y = torch.randn(sets, cells, genes), torch.randn(sets, cells, genes)
    e, others = torch.randn(sets, width), torch.randn(sets, candidates, width)
    absent = torch.zeros(sets, candidates, dtype=torch.bool)
    taken = []
    for _ in range(steps):
        start = time.perf_counter()
        optimiser.zero_grad()
        response, chosen, _ = net(x, e, others, absent, 0.5)
        (energy_distance(x + response, y).mean() + 0.1 * chosen.mean()).backward()
        optimiser.step()
        taken.append(time.perf_counter() - start)
    size = f"{sets} sets x {cells} cells x {genes} genes, K = {candidates}, {torch.get_num_threads()} threads"
    return [row(f"training step of pt_rag, {size}", 1e3 * float(np.median(taken)), 100, "ms")]


if __name__ == "__main__":
    print(as_table(results()))
