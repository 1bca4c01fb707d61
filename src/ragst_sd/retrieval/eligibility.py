"""Which rows of a bank each query may use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Eligibility:
    """Which rows of the bank each query may use.

    A row is eligible if `allowed` says so and it shares none of the query's groups.
    """

    query_groups: np.ndarray
    """(n, e) integer codes, -1 for a group that no row of the bank belongs to."""
    bank_groups: np.ndarray
    """(m, e) integer codes."""
    allowed: np.ndarray
    """(m,) bool."""

    @classmethod
    def everything(cls, n: int, m: int) -> Eligibility:
        """Every row is eligible for every query."""
        return cls(np.zeros((n, 0), dtype=np.int64), np.zeros((m, 0), dtype=np.int64), np.ones(m, dtype=bool))

    def mask(self, queries: slice | np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
        """(queries, rows) mask for parts of both."""
        groups, bank = self.query_groups[queries], self.bank_groups[rows]
        out = np.broadcast_to(self.allowed[rows], (len(groups), len(bank))).copy()
        for e in range(groups.shape[1]):
            out &= groups[:, e, None] != bank[None, :, e]
        return out

    def patterns(self) -> tuple[np.ndarray, np.ndarray]:
        """One query of each set of queries that may use the same rows, and (n,) the set of each query."""
        if not self.query_groups.shape[1]:
            return np.zeros(min(1, len(self.query_groups)), dtype=np.int64), np.zeros(len(self.query_groups), np.int64)
        _, first, inverse = np.unique(self.query_groups, axis=0, return_index=True, return_inverse=True)
        return first, inverse.ravel()

    def count(self) -> np.ndarray:
        """(n,) number of eligible rows of each query."""
        first, inverse = self.patterns()
        counts = [int(self.mask(np.array([i]), slice(None)).sum()) for i in first]
        return np.asarray(counts, dtype=np.int64)[inverse]

    def of_queries(self, queries: slice | np.ndarray) -> Eligibility:
        """The same for some of the queries."""
        return Eligibility(self.query_groups[queries], self.bank_groups, self.allowed)

    def of_rows(self, rows: slice | np.ndarray) -> Eligibility:
        """The same for some rows of the bank."""
        return Eligibility(self.query_groups, self.bank_groups[rows], self.allowed[rows])
