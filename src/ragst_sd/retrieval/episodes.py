"""Episodes: queries of a reference that retrieve from the rest of it, their own donor left out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ragst_sd.retrieval.bank import Bank, Run
from ragst_sd.retrieval.gate import GATES
from ragst_sd.retrieval.loop import section_correlation
from ragst_sd.retrieval.model import Member
from ragst_sd.retrieval.training import standardised_targets, within_section_pearson

# Queries of a batch, rows that they retrieve from, and queries that are scored, at most.
_BATCH, _BANK, _SCORED = 256, 4096, 1024
# Temperature of the gate `gumbel` at the first and at the last step.
_FIRST_TEMPERATURE, _LAST_TEMPERATURE = 1.0, 0.2


class Episodes:
    """Rows of a reference as tensors, and the options that a training step needs.

    Parameters
    ----------
    training
        Rows with their state, sections, and the groups whose rows never serve each other.
    x
        (m, p) inputs of phi.
    run
        How many candidates a query has, the options of `rag`, seed and device.
    candidates
        `"nearest"`, or `"random"` for a control.
    rows
        (m, p) inputs of phi for rows that are retrieved, where they are not those of queries.
    n_types
        Inputs that speak of cell types, the first ones.
    """

    def __init__(
        self,
        training: Bank,
        x: np.ndarray,
        run: Run,
        candidates: str = "nearest",
        rows: np.ndarray | None = None,
        n_types: int = 0,
    ) -> None:
        def tensor(array: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), dtype=dtype, device=run.device)

        name = "random_rag" if candidates == "random" else "rag"
        targets = standardised_targets(training, np.arange(len(x)), run.options.n_train_genes, name)
        self.options, self.n_candidates, self.amp = run.options, run.n_candidates, run.amp
        self.candidates, self.n_types, self.random = candidates, n_types, np.random.default_rng(run.rng)
        self.x = tensor(x)
        self.rows = self.x if rows is None else tensor(rows)
        # (m, g) profiles, centred within sections, in standard deviations of each gene.
        self.y = tensor(targets.values)
        self.state, self.sections = tensor(training.states), tensor(training.sections, torch.long)
        # Rows have few kinds of groups, so that kinds are compared instead of rows.
        self.kinds, self.kind = tensor(training.groups, torch.long).unique(dim=0, return_inverse=True)

    def batches(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows in batches of whole sections, in random order, so that correlations within sections can be taken.

        Of a section with more rows than a batch holds, some are drawn.
        """
        sections = self.sections.cpu().numpy()[rows]
        batches: list[np.ndarray] = []
        open_batch: list[np.ndarray] = []
        for section in self.random.permutation(np.unique(sections)):
            part = self.random.permutation(rows[sections == section])[:_BATCH]
            if open_batch and sum(map(len, open_batch)) + len(part) > _BATCH:
                batches.append(np.concatenate(open_batch))
                open_batch = []
            open_batch.append(part)
        return [*batches, np.concatenate(open_batch)]

    def predict(
        self, member: Member, queries: np.ndarray, bank: np.ndarray, temperature: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Evidence (n, g) of the queries from the bank, and the weights (n, K) that it rests on."""
        device = self.x.device
        q, b = (torch.as_tensor(rows, device=device) for rows in (queries, bank))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.amp):
            phi_q, phi_b = member(self.x[q]), member(self.rows[b])
        phi_q, phi_b = phi_q.float(), phi_b.float()
        closed = self._apart(q).index_select(1, self.kind[b])
        k = min(self.n_candidates, len(bank))
        # Less the square of the query, by which no two rows differ.
        squared = torch.addmm(closed + (phi_b * phi_b).sum(1), phi_q, phi_b.T, alpha=-2)
        index = _smallest(closed + torch.rand_like(closed) if self.candidates == "random" else squared.detach(), k)
        absent = closed.gather(1, index) > 0
        # A row whose groups leave it no neighbour at all gets no evidence, instead of dividing by nothing.
        isolated = absent.all(dim=1, keepdim=True)
        squared = (squared.gather(1, index) + (phi_q * phi_q).sum(1, keepdim=True)).masked_fill(absent, 0).clamp_min(0)
        # The gradient of `phi_b[index]` is summed in an order that depends on the threads; that of an embedding is not.
        candidates = torch.nn.functional.embedding(index, phi_b) if member.conditioning is not None else None
        logits = member.logits_of_distances(squared, phi_q, candidates, self.state[q], absent & ~isolated)
        weights = GATES[self.options.gate](logits, member.null, temperature).masked_fill(isolated, 0.0)
        return torch.nn.functional.embedding_bag(b[index], self.y, per_sample_weights=weights, mode="sum"), weights

    def _apart(self, queries: Tensor) -> Tensor:
        """(n, kinds) distance of the rows that may not serve a query, and zero for all others."""
        shared = (self.kinds[self.kind[queries], None] == self.kinds).any(dim=2)
        return torch.where(shared, torch.inf, 0.0)

    def loss(self, member: Member, queries: np.ndarray, progress: float) -> Tensor:
        """Loss of one batch; `progress` runs from 0 to 1 over the training."""
        bank = np.arange(len(self.x))
        if len(bank) > _BANK:
            bank = np.sort(self.random.choice(len(bank), _BANK, replace=False))
        temperature = _FIRST_TEMPERATURE + (_LAST_TEMPERATURE - _FIRST_TEMPERATURE) * progress
        evidence, weights = self.predict(member, queries, bank, temperature)
        target, sections = self.y[torch.as_tensor(queries, device=self.y.device)], self.sections[queries]
        loss = torch.nn.functional.mse_loss(evidence, target)
        loss = loss + self.options.correlation * (1 - section_correlation(evidence, target, sections))
        if self.options.sparsity:
            # The effective number of rows as a share of the candidates.
            concentration = (weights**2).sum(dim=1).clamp_min(1e-6)
            loss = loss + self.options.sparsity * (1 / concentration).mean() / weights.shape[1]
        return loss

    def evidence(self, member: Member, queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
        """(n, g) evidence of held-out queries from the bank, without gradients."""
        with torch.no_grad():
            parts = [self.predict(member, queries[i : i + _SCORED], bank)[0] for i in range(0, len(queries), _SCORED)]
        return torch.cat(parts).cpu().numpy().astype(np.float64)

    def score(self, member: Member, queries: np.ndarray, bank: np.ndarray) -> float:
        """Within-section Pearson of the evidence of held-out queries; of every k-th one where they are many."""
        queries = queries[:: -(-len(queries) // _SCORED)]
        index = torch.as_tensor(queries, device=self.y.device)
        return within_section_pearson(
            self.evidence(member, queries, bank), self.y[index].cpu().numpy(), self.sections[index].cpu().numpy()
        )


def _smallest(values: Tensor, k: int) -> Tensor:
    """(n, k) places of the smallest values in each row of (n, m), in any order."""
    if values.device.type != "cpu":
        return values.topk(k, dim=1, largest=False, sorted=False).indices
    # Several times as quick as torch on a processor.
    return torch.from_numpy(np.argpartition(values.numpy(), k - 1, axis=1)[:, :k])
