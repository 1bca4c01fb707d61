"""The sections of a held-out group, and their scores: gene by gene, and as a whole."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._metrics import METRICS, finite_mean, score_genes
from ragst_sd._state import state_of
from ragst_sd._validate import listing
from ragst_sd._workers import spread_blocks
from ragst_sd.reference.noise_ceiling import noise_ceiling
from ragst_sd.reference.normalize import as_csr
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.eligibility import Eligibility
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.run import Selected, Values, part_of, predict, select
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._folds import Fold, most_variable, training_part
from ragst_sd.tl._section_metrics import label_share, lines_of_section

logger = logging.getLogger(__name__)

FEWEST_SPOTS = 3


@dataclass(frozen=True)
class HeldSection:
    """The held-out rows of one section, and what is compared there."""

    fold: str
    sample: str
    rows: np.ndarray
    genes: list[str]
    """Scored one by one: of those chosen, what this section measured."""
    summarised: np.ndarray
    """Positions among `genes` of those that describe the section as a whole."""


def choose_genes(bank: Bank, fold: Fold, n_genes: int, genes: list[str] | None) -> tuple[list[str], set[str]]:
    """Genes to compare, and those of them that describe a section as a whole, decided on the training rows."""
    part = training_part(bank, fold.training, bank.values)
    if genes is None:
        genes = most_variable(part, n_genes)
        return genes, set(genes)
    chosen = [gene for gene in genes if gene in part.genes]
    if not chosen:
        raise ValueError(f"Without {fold.name!r} no row measured any of {listing(genes)}.")
    return chosen, set(most_variable(part, n_genes)) if len(genes) == len(bank.genes) else set(chosen)


def held_sections(
    bank: Bank, fold: Fold, chosen: list[str], summarised: set[str], *, by_donor: str | None = None
) -> list[HeldSection]:
    """The sections of a fold; under the name of the fold, or with `by_donor`, say `"{}"`, under that of their donor."""
    samples, donors = (bank.obs[name].astype(str).to_numpy()[fold.held] for name in (_keys.SAMPLE, _keys.DONOR))
    names = [fold.name if by_donor is None else by_donor.format(donor) for donor in donors]
    out = []
    for name, sample in dict.fromkeys(zip(names, samples, strict=True)):
        rows = fold.held[(samples == sample) & (np.array(names) == name)]
        measured = bank.measured[np.unique(bank.panels[rows])].all(axis=0)
        genes = [str(gene) for gene in np.array(chosen)[measured[bank.genes.get_indexer(chosen)]]]
        of_section = np.flatnonzero(np.isin(genes, list(summarised)))
        out.append(HeldSection(name, sample, rows, genes, of_section))
        if len(rows) < FEWEST_SPOTS:
            logger.info("%s has %d spots only: it is predicted but not scored.", sample, len(rows))
        elif len(genes) < len(chosen):
            logger.info("%s did not measure %d of the genes compared.", sample, len(chosen) - len(genes))
    return out


def about_the_data(bank: Bank, section: HeldSection, *, counts: Any, rng: int) -> pd.DataFrame:
    """Lines that hold for every method; `None` for counts leaves the noise ceiling out."""
    lines = pd.DataFrame({"gene": [""], "metric": "n_spots", "value": float(len(section.rows))})
    if counts is not None and len(section.rows) >= FEWEST_SPOTS and section.genes:
        basis = bank.genes.get_indexer(bank.header.size_factor_genes)
        value = noise_ceiling(as_csr(counts[section.rows]), basis, rng=rng)[bank.genes.get_indexer(section.genes)]
        of_genes = pd.DataFrame({"gene": section.genes, "metric": _keys.NOISE_CEILING, "value": value})
        lines = pd.concat([lines, of_genes])
    return lines.assign(method="", fold=section.fold, sample=section.sample, unit=bank.header.unit)


def score_section(
    bank: Bank,
    part: Bank,
    section: HeldSection,
    values: Any,
    numbers: list[int],
    label_key: str,
    rng: int,
    *,
    metrics: Sequence[str],
    gene_sets: Mapping[str, Iterable[str]] | None,
) -> pd.DataFrame:
    """All lines of one method on one held-out section."""
    cites = METHODS[part.fit.method].cites
    held = bank.at_rows(section.rows)
    selected, answer = predict_held(part, held, section.genes)
    whole = {
        _keys.EFFECTIVE_N: finite_mean(selected.grounding.effective_n),
        _keys.EVIDENCE_SHARE: finite_mean(answer["evidence_share"]),
    }
    labels = held.obs[label_key].to_numpy() if label_key in bank.obs else None
    parts = []
    if len(section.rows) >= FEWEST_SPOTS and section.genes:
        truth = values[section.rows][:, bank.genes.get_indexer(section.genes)]
        of_genes = [name for name in metrics if name in METRICS]
        parts.append(gene_scores(answer["prediction"], truth, section.genes, of_genes))
        columns = section.summarised
        names, expected = [section.genes[i] for i in columns], dense(truth[:, columns])
        parts += lines_of_section(
            answer["prediction"],
            truth,
            metrics,
            columns,
            genes=section.genes,
            positions=held.obs[[_keys.X_UM, _keys.Y_UM]].to_numpy(float),
            labels=labels,
            gene_sets=gene_sets,
            rng=rng,
        )
        if cites:
            whole["evidence_pearson"] = mean_pearson(answer["evidence"][:, columns], expected)
            for number in numbers:
                if number <= part.fit.n_neighbors:
                    of_few = predict_held(part, held, names, number)[1]["prediction"]
                    whole[f"pearson_cited_{number}"] = mean_pearson(of_few, expected)
    if cites and labels is not None:
        cited = selected.selection
        shares = label_share(cited.rows, cited.weights, labels, part.obs[label_key].to_numpy())
        whole["label_share"], whole["label_share_random"] = shares
    parts.append(pd.DataFrame({"gene": "", "metric": list(whole), "value": list(whole.values())}))
    return pd.concat(parts, ignore_index=True).assign(fold=section.fold, sample=section.sample)


def predict_held(
    part: Bank, held: Bank, genes: list[str], n_neighbors: int | None = None, *, with_disagreement: bool = False
) -> tuple[Selected, Values]:
    """Predict held-out rows from the fitted bank of the others, with as many neighbours as were fitted if left out."""
    same_section = np.isin(part.obs[_keys.SAMPLE].astype(str), held.obs[_keys.SAMPLE].astype(str))
    selected = select(
        part,
        held.embedding,
        state=state_of(part.fit.parameters, held.obs, held.embedding),
        # Nothing of the held-out group is in the bank; what is left of the section that it is a part of, is.
        eligibility=replace(Eligibility.everything(len(held), len(part)), level_rows=same_section),
        n_neighbors=part.fit.n_neighbors if n_neighbors is None else n_neighbors,
    )
    places = part.genes.get_indexer(genes)
    of_genes = part_of(part, places, selected, spread=with_disagreement)
    return selected, predict(of_genes, selected.selection, spread_blocks)


def gene_scores(predicted: np.ndarray, truth: Any, genes: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """`gene`, `metric`, `value` of (spots, genes) predictions; a gene counts over the spots where it was predicted."""
    scores = pd.DataFrame(score_genes(metrics, predicted, truth), index=pd.Index(genes, name="gene"))
    return scores[list(metrics)].melt(var_name="metric", ignore_index=False).reset_index()


def mean_pearson(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Pearson averaged over the genes that vary."""
    return finite_mean(score_genes(["pearson"], predicted, truth)["pearson"])


def counts_for_ceiling(reference: AnnData, bank: Bank) -> Any:
    """Counts that a noise ceiling is estimated from.

    `None` where those of the genes behind the size factors are missing.
    """
    counts = reference.layers.get(_keys.COUNTS)
    if counts is None or not (bank.genes.get_indexer(bank.header.size_factor_genes) >= 0).all():
        logger.info("No noise ceiling: the reference lacks counts of the genes that size factors rest on.")
        return None
    return counts


def write_gene_trust(
    reference: AnnData, scores: pd.DataFrame, method: str, *, split: str = "donor", fit_hash: str = ""
) -> None:
    """Write into `.var` how well a method predicts each gene, and its noise ceiling: means over sections, then groups.

    Genes that were not scored keep what the same method was found to reach before. `fit_hash` names the very fit, if it
    was one.
    """
    before = reference.uns[_keys.ATTRS].get(_keys.GENE_TRUST, {})
    trust = {"method": method, "fit_hash": fit_hash, "split": split}
    same = {"fit_hash": "", "split": "donor", **before} == trust
    measured = ((_keys.CV_PEARSON, "pearson", method), (_keys.NOISE_CEILING, _keys.NOISE_CEILING, ""))
    for column, metric, of_method in measured:
        lines = scores[(scores["metric"] == metric) & (scores["method"] == of_method)]
        by_group = lines.groupby(["gene", "fold"])["value"].mean()
        means = by_group.groupby(level="gene").mean().reindex(reference.var_names)
        if column in reference.var and (same or column == _keys.NOISE_CEILING):
            means = means.fillna(reference.var[column])
        reference.var[column] = means.to_numpy(float)
    reference.uns[_keys.ATTRS] = {**reference.uns[_keys.ATTRS], _keys.GENE_TRUST: trust}
    logger.info("Adding `reference.var[%r]` (of %r) and `[%r]`.", _keys.CV_PEARSON, method, _keys.NOISE_CEILING)
