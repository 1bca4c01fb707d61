"""Which rows of a bank each query may use."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Eligibility:
    """Which rows of the bank each query may use.

    A row is eligible if `allowed` says so, it shares none of the query's groups, and it is not the query itself.
    Queries with the same groups may use the same rows, but for their own: they have one *pattern*.
    """

    query_groups: np.ndarray
    """(n, e) integer codes, -1 for a group that no row of the bank belongs to."""
    bank_groups: np.ndarray
    """(m, e) integer codes."""
    allowed: np.ndarray
    """(m,) bool."""
    itself: np.ndarray | None = None
    """(n,) row of the bank that each query is itself, -1 for none. It is not cited; means and regressions keep it."""
    level_rows: np.ndarray | None = None
    """(m,) bool, rows on whose mean evidence is put back; all that may be used if left out."""

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
        if self.itself is not None:
            out &= self.itself[queries, None] != np.arange(len(self.allowed))[rows]
        return out

    @property
    def split(self) -> str:
        """What has to be held out to see how accurate such a prediction is: donors, or blocks of its own section."""
        return "donor" if self.level_rows is None else "block"

    def of_groups(self) -> Eligibility:
        """The same without the rule that a query does not use its own row."""
        return replace(self, itself=None)

    def of_level(self) -> Eligibility:
        """Limited to the rows of `level_rows`, as far as there are any."""
        limited = self.allowed if self.level_rows is None else self.allowed & self.level_rows
        return replace(self, allowed=limited) if limited.any() else self

    def patterns(self) -> tuple[np.ndarray, np.ndarray]:
        """(patterns,) a query of each pattern, and (n,) the pattern of each query."""
        if not self.query_groups.shape[1]:
            return np.zeros(min(1, len(self.query_groups)), dtype=np.int64), np.zeros(len(self.query_groups), np.int64)
        _, first, pattern = np.unique(self.query_groups, axis=0, return_index=True, return_inverse=True)
        return first, pattern.ravel()

    def pattern_masks(self) -> np.ndarray:
        """(patterns, m) rows that the queries of each pattern may use, their own row among them."""
        return self.of_groups().mask(self.patterns()[0], slice(None))

    def count_by(self, codes: np.ndarray) -> np.ndarray:
        """(patterns, groups) number of these rows in each group of rows, whose codes are (m,)."""
        return np.stack([np.bincount(codes[mask], minlength=codes.max() + 1) for mask in self.pattern_masks()])

    def count(self) -> np.ndarray:
        """(n,) number of eligible rows of each query."""
        counts = self.pattern_masks().sum(axis=1)[self.patterns()[1]]
        if self.itself is not None:
            known = np.flatnonzero(self.itself >= 0)
            row = self.itself[known]
            differs = (self.query_groups[known] != self.bank_groups[row]).all(axis=1)
            counts[known] -= self.allowed[row] & differs
        return counts

    def of_queries(self, queries: slice | np.ndarray) -> Eligibility:
        """The same for some of the queries."""
        itself = None if self.itself is None else self.itself[queries]
        return replace(self, query_groups=self.query_groups[queries], itself=itself)

    def of_rows(self, rows: slice) -> Eligibility:
        """The same for consecutive rows of the bank."""
        itself, level = self.itself, None if self.level_rows is None else self.level_rows[rows]
        if itself is not None:
            itself = np.where((itself >= rows.start) & (itself < rows.stop), itself - rows.start, -1)
        return Eligibility(self.query_groups, self.bank_groups[rows], self.allowed[rows], itself, level)
