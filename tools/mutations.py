"""Break kernels of retrieval on purpose, one line at a time, and see whether their tests notice.

    python tools/mutations.py                       # all of them
    python tools/mutations.py --seed 7 --number 4   # four, drawn with this seed
    python tools/mutations.py --only dose           # those with this word in their name

Each is made in a copy of the package; the working tree stays as it is. The exit status is the number that survived.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "ragst_sd"
COMMON = "tests/test_methods_common.py"


class Mutation(NamedTuple):
    """One line of a kernel, and how it goes wrong."""

    name: str
    file: str
    """In `retrieval`."""
    old: str
    """Occurs once in the file."""
    new: str
    tests: str
    """Files in `tests/retrieval`, without `test_` and `.py`; or arguments of pytest."""


MUTATIONS = (
    Mutation(
        "own donor may be used", "eligibility.py", "for e in range(groups.shape[1]):", "for e in range(0):", "search"
    ),
    Mutation(
        "ties in any order",
        "search.py",
        "np.lexsort((tie_order[near], squared), axis=1)",
        'np.argsort(squared, axis=1, kind="stable")',
        "search",
    ),
    Mutation(
        "rows on disk by their place in the reference",
        "run.py",
        "np.searchsorted(read, np.maximum(rows, 0))",
        "np.maximum(rows, 0)",
        f"{COMMON} -k on_disk",
    ),
    Mutation(
        "a bound that rounding may cross",
        "shortlist.py",
        "last + query_norm - error",
        "last + query_norm + error",
        "search search_properties",
    ),
    Mutation(
        "rows that are near enough left out",
        "shortlist.py",
        "torch.nonzero(scores < self.worst()",
        "torch.nonzero(scores > self.worst()",
        "search search_properties",
    ),
    Mutation(
        "nearer rows get less",
        "model.py",
        "out = -self.log_sharpness.exp() * squared",
        "out = self.log_sharpness.exp() * squared",
        "model",
    ),
    Mutation(
        "random rows by their place",
        "search.py",
        "by_id = np.argsort(tie_order)",
        "by_id = np.arange(len(tie_order))",
        "random_candidates",
    ),
    Mutation(
        "rows of a later block by their place in it",
        "search.py",
        "near.rows + start, -1",
        "near.rows, -1",
        "block_search",
    ),
    Mutation(
        "embeddings on their own scale",
        "rag.py",
        'in_blocks(forward, key / float(parameters["input_scale"]), width)',
        "in_blocks(forward, key, width)",
        "model",
    ),
    Mutation(
        "correlation across sections",
        "loop.py",
        "centred = target - member @ (member.T @ target / count)",
        "centred = target - target.mean(dim=0)",
        "section_correlation",
    ),
    Mutation(
        "absent rows weighed",
        "gate.py",
        "np.where(present, np.exp(-sharpness * scaled**2), 0.0)",
        "np.exp(-sharpness * scaled**2)",
        "methods",
    ),
    Mutation(
        "threshold of entmax, other root",
        "gate.py",
        "mean - ((1 - spread) / count)",
        "mean + ((1 - spread) / count)",
        "gate",
    ),
    Mutation(
        "own donor teaches",
        "episodes.py",
        "self.kinds[self.kind[queries], None] == self.kinds).any(dim=2)",
        "self.kinds[self.kind[queries], None] == self.kinds).all(dim=2)",
        "episodes",
    ),
    Mutation(
        "worst rows cited",
        "evidence.py",
        'np.argsort(-weights, axis=1, kind="stable")',
        'np.argsort(weights, axis=1, kind="stable")',
        "training",
    ),
    Mutation(
        "one row more than asked for",
        "evidence.py",
        "[:, : query.n_neighbors]",
        "[:, : query.n_neighbors + 1]",
        "training",
    ),
    Mutation(
        "weights of cited rows as they were among all",
        "evidence.py",
        "weights = normalised(weights)",
        "weights = weights * 1.0",
        "training",
    ),
    Mutation("votes of the other panels", "evidence.py", "np.where(panel == p,", "np.where(panel != p,", "evidence"),
    Mutation(
        "section shift not subtracted",
        "evidence.py",
        "moved = average - shift",
        "moved = average - 0 * shift",
        f"{COMMON} -k is_evidence",
    ),
    Mutation(
        "level of the first query for all",
        "evidence.py",
        "level[0] if len(level) == 1 else level[selection.pattern]",
        "level[0]",
        f"{COMMON} -k is_evidence",
    ),
    Mutation(
        "level of all rows",
        "eligibility.py",
        "np.bincount(codes[mask],",
        "np.bincount(codes,",
        f"{COMMON} -k is_evidence",
    ),
    Mutation(
        "all contexts in the pool",
        "bank.py",
        "np.where(here.any(axis=1, keepdims=True), here, self.eligible)",
        "self.eligible",
        "response_methods",
    ),
    Mutation(
        "shift with the wrong sign",
        "training.py",
        "np.nan_to_num(of_section - mean)",
        "np.nan_to_num(mean - of_section)",
        "training",
    ),
    Mutation(
        "regression of values beside their sections",
        "regression.py",
        "moment - of_section.T @ shifts[:, genes]",
        "moment + of_section.T @ shifts[:, genes]",
        "regression",
    ),
    Mutation(
        "taught by the held-out rows",
        "regression.py",
        "regressed = [next(_held_out(z, targets, inner, held, [alpha]))",
        "regressed = [next(_held_out(z, targets, held, held, [alpha]))",
        "regression",
    ),
    Mutation("penalty per row", "ridge.py", "alpha * len(rows)", "alpha", "methods"),
    Mutation(
        "the worst state is kept", "loop.py", "if now > history.best_score", "if now < history.best_score", "loop"
    ),
    Mutation("genes on no common scale", "knn.py", "/ sd[varies]", "* sd[varies]", "knn"),
    Mutation(
        "zeros of panels that did not measure",
        "training.py",
        "np.bincount(panels, minlength=len(training.measured)) @ training.measured",
        "np.full(len(total), len(panels))",
        "methods",
    ),
    Mutation("quantile one rank too high", "conformal.py", "np.clip(rank - 1, 0,", "np.clip(rank, 0,", "conformal"),
    Mutation(
        "at least so many groups, one too few",
        "conformal.py",
        "binom.sf(rank - 1,",
        "binom.sf(rank,",
        "conformal",
    ),
    Mutation(
        "narrower where tissue looks unlike",
        "conformal.py",
        "np.maximum(1.0, np.nan_to_num(appearance_distance",
        "np.minimum(1.0, np.nan_to_num(appearance_distance",
        "conformal",
    ),
    Mutation(
        "no row counts as a donor",
        "grounding.py",
        "return (new & (codes >= 0)).sum(axis=1)",
        "return new.sum(axis=1) + 1",
        "grounding",
    ),
    Mutation(
        "only sections that may not be used", "appearance.py", "squared[~eligible]", "squared[eligible]", "grounding"
    ),
    Mutation(
        "dose inverted",
        "response_phi.py",
        "doses(query.perturbed)[:, None] / doses(bank.screen.perturbed)[rows]",
        "doses(bank.screen.perturbed)[rows] / doses(query.perturbed)[:, None]",
        "response_rag",
    ),
    Mutation(
        "mean of a context over all of its rows",
        "response_phi.py",
        "means_at(bank.values[allowed], bank.sections[allowed], at)",
        "means_at(bank.values, bank.sections, at)",
        "response_rag",
    ),
    Mutation(
        "truth from the half that taught",
        "response_gates.py",
        "truth = measured.values[rows]",
        "truth = taught.values[rows]",
        "response_rag",
    ),
    Mutation(
        "doubt as a merit",
        "response_gates.py",
        "bound = (mean - error).copy()",
        "bound = (mean + error).copy()",
        "response_rag",
    ),
    Mutation(
        "state bends the wrong way",
        "response_phi.py",
        "(self.slope[line, i] + bent[:, None])",
        "(self.slope[line, i] - bent[:, None])",
        "response_rag",
    ),
    Mutation(
        "penalty from the half that taught",
        "response_baselines.py",
        "(predicted - truth[held])",
        "(predicted - learned[held])",
        "response_rag",
    ),
    Mutation(
        "a row teaches what is said of itself",
        "response_stack.py",
        "/ (1 - itself)[:, None]",
        "/ (1 + itself)[:, None]",
        "response_stack",
    ),
    Mutation(
        "responses here taken for those elsewhere",
        "responses.py",
        "& (contexts[:, None] != sections)",
        "& (contexts[:, None] == sections)",
        "response_stack",
    ),
    Mutation(
        "held-out responses teach in their own context",
        "response_shares.py",
        "shut &= ~itself | (bank.sections == context)",
        "shut &= ~itself",
        "response_stack",
    ),
    Mutation(
        "what holds a perturbation may be used for it",
        "responses.py",
        "genes <= others",
        "genes >= others",
        "response_rag",
    ),
)


def occurrences(mutation: Mutation) -> int:
    """How often the line to be broken is in its file."""
    return (PACKAGE / "retrieval" / mutation.file).read_text(encoding="utf-8").count(mutation.old)


def tests_of(mutation: Mutation) -> list[str]:
    """Arguments of pytest, the first of which is a file."""
    one = shlex.split(mutation.tests)
    return one if one[0].startswith("tests/") else [f"tests/retrieval/test_{name}.py" for name in one]


def caught_by(mutation: Mutation) -> str:
    """The test that notices; empty if none does."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PACKAGE.name
        # With what is compiled already, which the broken file is too new for.
        shutil.copytree(PACKAGE, copy)
        broken = copy / "retrieval" / mutation.file
        text = broken.read_text(encoding="utf-8")
        broken.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        alone = {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests_of(mutation)],
            cwd=ROOT,
            env={**os.environ, **alone},
            capture_output=True,
            text=True,
            check=False,
        )
    # 0: all passed, 1: a test failed; anything else says nothing of the tests.
    if run.returncode not in (0, 1):
        msg = f"{mutation.name}: pytest ended with {run.returncode}.\n{run.stdout}{run.stderr}"
        raise RuntimeError(msg)
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, flags=re.MULTILINE)
    return found[1] if found else ""


def chosen(seed: int | None, number: int | None, only: str) -> list[Mutation]:
    """Mutations with this word in their name; in an order of the seed, and as many as asked for."""
    named = [mutation for mutation in MUTATIONS if only in mutation.name]
    order = range(len(named)) if seed is None else np.random.default_rng(seed).permutation(len(named))
    return [named[i] for i in order][:number]


def main() -> int:
    """Tell for each whether it was caught, and by which test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="seed of their order")
    parser.add_argument("--number", type=int, help="how many, the first ones")
    parser.add_argument("--only", default="", help="a word in their name")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    asked = parser.parse_args()
    mutations, survived = chosen(asked.seed, asked.number, asked.only), 0
    with ThreadPoolExecutor(asked.jobs) as pool:
        for mutation, test in zip(mutations, pool.map(caught_by, mutations), strict=True):
            survived += not test
            print(f"{'caught  ' if test else 'SURVIVED'} {mutation.file}: {mutation.name} {test}", flush=True)
    return survived


if __name__ == "__main__":
    sys.exit(main())
