"""`rg.tl.perturbation_folds`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from ragst_sd import _keys
from ragst_sd._validate import listing, require_choice, require_positive, require_type
from ragst_sd.reference.responses import components, halves
from ragst_sd.tl._perturbation_cells import NAME_THEM, control_labels, read_labels
from ragst_sd.tl._response_table import one_row_each, with_labels

logger = logging.getLogger(__name__)

SPLITS = ("perturbation", "here", "context", "both")
_FOLDS_OF_A_CONTEXT = 5


def perturbation_folds(
    adata: AnnData | pd.DataFrame,
    *,
    split: str = "perturbation",
    n_folds: int | None = None,
    few_shot: float = 0.3,
    perturbation_key: str = "perturbation",
    control: str | Sequence[str] = "control",
    context_key: str | None = None,
    batch_key: str | None = None,
    rng: int | np.random.Generator | np.random.SeedSequence | None = 0,
) -> pd.DataFrame:
    """Make folds that hold out perturbations, contexts or both, with a fixed split of the controls.

    There are two tasks. A perturbation is *unseen* if nothing of it was measured anywhere (`split="perturbation"`,
    `"both"`). It is *unseen here* if it was measured in another context (`split="here"`); with few shots, some other
    perturbations were measured in this context and most were not (`split="context"`).

    The controls of every context and batch are split into two halves, the same in all folds. One half is used for the
    training responses and as the source of the prediction, the other for the true response. If both used the same
    controls, they would share the noise of the controls, and a prediction would correlate with the truth without any
    information about it.

    Parameters
    ----------
    adata
        Cells of a screen; or a table of responses, with one row per perturbation and context and without controls; or
        responses as a data frame, wide or long, as :func:`ragst_sd.tl.build_perturbation_reference` takes them.
    split
        `"perturbation"` holds perturbations out, in all contexts. `"here"` holds them out in one context, where other
        contexts measured them. `"context"` holds a context out, in which a share of `few_shot` of the perturbations is
        seen. `"both"` does so and takes the held-out perturbations out of the other contexts as well.

        Combinations that contain a held-out perturbation leave the training too, in the context where it is held out
        (with `"perturbation"` and `"both"` in all). The singles of a held-out combination stay.
    n_folds
        Number of folds of `"perturbation"`, one for every perturbation if left out; of `"here"` in every context, 5 if
        left out. The others have one per context.
    few_shot
        Share of the perturbations of a held-out context that training sees, from 0 to below 1.
    perturbation_key
        Column of `.obs` with the perturbation.
    control
        What that column says for controls; several names count as one control.
    context_key
        Column of `.obs` with the context; one context if left out.
    batch_key
        Column of `.obs` with the batch.
    rng
        Seed, generator or seed sequence of numpy, of what is drawn; `None` draws anew at each call.

    Returns
    -------
    Data frame with one row per cell (its index is `obs_names`) or line of a data frame (with its index), and one
    categorical column per fold, named by what is held out: `"train"`, `"test"`, `"control_train"`, `"control_test"`, or
    `"unused"`. Build the reference on the first and third, predict from the third, and compare with the second and
    fourth: see :func:`ragst_sd.tl.evaluate_perturbation`. Responses have no controls: build on the first, compare with
    the second; controls of a data frame are `"unused"`.

    Raises
    ------
    KeyError
        If a column does not exist.
    TypeError
        If `adata` is neither an AnnData nor a data frame.
    ValueError
        If there are too few perturbations or contexts to hold one out, contexts share no perturbation where one has to
        be measured in another, or cells have no controls.

    Examples
    --------
    >>> import anndata as ad, numpy as np, ragst_sd as rg
    >>> adata = ad.AnnData(np.ones((8, 2), dtype="float32"))
    >>> adata.obs["perturbation"] = ["control"] * 4 + ["A", "A", "B", "B"]
    >>> folds = rg.tl.perturbation_folds(adata)
    >>> list(folds["A"])[4:]
    ['test', 'test', 'train', 'train']
    """
    require_type(adata, (ad.AnnData, pd.DataFrame), "adata")
    require_choice(split, SPLITS, "split")
    if not isinstance(few_shot, int | float) or not 0 <= few_shot < 1:
        raise ValueError(f"`few_shot` is {few_shot!r}; it must be a number from 0 to below 1.")
    if isinstance(adata, pd.DataFrame):
        index, responses = adata.index, True
        # One row for each response, however many lines it has, so that the draws are those of an AnnData.
        keys = [name for name in dict.fromkeys((perturbation_key, context_key, batch_key)) if name is not None]
        lines = with_labels(adata, keys)[keys]
        rows, of_line = lines.drop_duplicates(), lines.groupby(keys, sort=False, observed=True, dropna=False).ngroup()
        adata = ad.AnnData(obs=rows.set_axis([str(i) for i in range(len(rows))]))
    else:
        index, of_line = adata.obs_names, slice(None)
        responses = one_row_each(adata.obs, perturbation_key, context_key, control_labels(control))
    labels = read_labels(
        adata,
        perturbation_key=perturbation_key,
        control=control,
        context_key=context_key,
        batch_key=batch_key,
        todo=NAME_THEM,
        responses=responses,
    )
    control = control_labels(control)[0]
    if n_folds is not None:
        require_positive(n_folds, "n_folds", whole=True)
    generator = np.random.default_rng(rng)
    # Drawn in the order of the names of the cells, so that the order in which they come changes nothing.
    order = np.argsort(np.asarray(adata.obs_names, dtype=str), kind="stable")
    is_control = labels["control"].to_numpy()
    groups = np.where(is_control, labels.groupby([_keys.CONTEXT, "batch"]).ngroup(), -1)
    first = np.empty(adata.n_obs, dtype=bool)
    first[order] = halves(groups[order], generator)
    if split == "perturbation":
        held = _perturbations(labels, control, n_folds, generator)
    elif split == "here":
        held = _here(labels, control, n_folds, generator)
    else:
        if n_folds is not None:
            raise ValueError(f"`n_folds` is {n_folds}, but split {split!r} has one fold per context. Leave it out.")
        held = _contexts(labels, control, few_shot, everywhere=split == "both", rng=generator)
    roles = ["train", "test", *([] if responses else ["control_train", "control_test"]), "unused"]
    columns = {}
    for name, (test, unused) in held.items():
        of_controls = "unused" if responses else np.where(first, "control_train", "control_test")
        role = np.select([is_control, test, unused], [of_controls, "test", "unused"], "train")
        columns[name] = pd.Categorical(role[of_line], categories=roles)
    return pd.DataFrame(columns, index=index)


def _perturbations(
    labels: pd.DataFrame, control: str, n_folds: int | None, rng: np.random.Generator
) -> dict[str, tuple[pd.Series, pd.Series]]:
    treated = ~labels["control"]
    names = sorted(set(labels[_keys.PERTURBATION][treated]))
    folds = len(names) if n_folds is None else int(n_folds)
    if not 2 <= folds <= len(names):
        raise ValueError(
            f"{len(names)} perturbations ({listing(names)}) cannot make {folds} folds: 2 to {len(names)} are possible."
        )
    order = names if n_folds is None else [names[i] for i in rng.permutation(len(names))]
    in_turn = _in_turn(labels, treated, order, folds, control)
    return {names[i] if n_folds is None else f"fold{i + 1}": masks for i, masks in enumerate(in_turn)}


def _in_turn(
    labels: pd.DataFrame, where: pd.Series, names: Sequence[str], folds: int, control: str
) -> Iterator[tuple[pd.Series, pd.Series]]:
    """Perturbations to hold out at a time, among the cells of a mask, and the combinations to leave out with them."""
    perturbation = labels[_keys.PERTURBATION]
    for fold in range(folds):
        held = set(names[fold::folds])
        yield where & perturbation.isin(held), where & perturbation.isin(_leaking(perturbation[where], held, control))


def _leaking(measured: pd.Series, held: set[str], control: str) -> set[str]:
    """Combinations that are not held out and contain all genes of a perturbation that is."""
    genes = {name: set(components(name, control)) for name in {*measured, *held}}
    return {name for name in set(measured) - held if any(genes[other] < genes[name] for other in held)}


def _here(
    labels: pd.DataFrame, control: str, n_folds: int | None, rng: np.random.Generator
) -> dict[str, tuple[pd.Series, pd.Series]]:
    """Folds of each context's perturbations that another context measured as well."""
    folds = _FOLDS_OF_A_CONTEXT if n_folds is None else int(n_folds)
    perturbation, context = labels[_keys.PERTURBATION], labels[_keys.CONTEXT]
    treated = ~labels["control"]
    several = labels[treated].groupby(_keys.PERTURBATION)[_keys.CONTEXT].nunique() > 1
    shared = sorted(several.index[several])
    if not shared:
        raise ValueError(
            f"No perturbation was measured in two contexts ({listing(sorted(set(context)))}): nothing can be held out "
            "in one and seen in another. Name the contexts with `context_key=`, or use `split='perturbation'`."
        )
    out = {}
    for name in sorted(set(context[treated & perturbation.isin(shared)])):
        here = treated & (context == name)
        measured = set(perturbation[here])
        elsewhere_too = sorted(measured & set(shared))
        if folds > len(elsewhere_too) or len(measured) < 2:
            raise ValueError(
                f"Context {name!r} shares {len(elsewhere_too)} perturbations with others, too few for {folds} folds. "
                "Lower `n_folds`."
            )
        shuffled = [elsewhere_too[i] for i in rng.permutation(len(elsewhere_too))]
        for fold, masks in enumerate(_in_turn(labels, here, shuffled, folds, control)):
            out[f"{name} fold{fold + 1}"] = masks
    return out


def _contexts(
    labels: pd.DataFrame, control: str, few_shot: float, *, everywhere: bool, rng: np.random.Generator
) -> dict[str, tuple[pd.Series, pd.Series]]:
    treated, perturbation = ~labels["control"], labels[_keys.PERTURBATION]
    contexts = sorted(set(labels[_keys.CONTEXT][treated]))
    if len(contexts) < 2:
        raise ValueError(
            f"There is one context ({listing(contexts)}); holding it out leaves nothing. Name the contexts with "
            "`context_key=`."
        )
    out = {}
    for context in contexts:
        here = treated & (labels[_keys.CONTEXT] == context)
        names = sorted(set(perturbation[here]))
        seen = round(few_shot * len(names))
        held = [names[i] for i in rng.permutation(len(names))[seen:]]
        if not held:
            raise ValueError(
                f"Context {context!r} has {len(names)} perturbations, all of which `few_shot` {few_shot} shows. "
                "Lower it."
            )
        everybody = treated & perturbation.isin(held)
        elsewhere = set(perturbation[everybody & ~here])
        if not everywhere and len(elsewhere) < len(held):
            logger.warning(
                "%d of %d perturbations held out in %r were measured in no other context: they are unseen, not unseen "
                "here.",
                len(held) - len(elsewhere),
                len(held),
                context,
            )
        leaking = treated & perturbation.isin(_leaking(perturbation[treated], set(held), control))
        out[context] = (everybody & here, (everybody & ~here & everywhere) | (leaking & (here | everywhere)))
    return out
