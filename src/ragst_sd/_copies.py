"""Whether a query is a section of the reference under another donor's name, in other pixels."""

from __future__ import annotations

import logging
from contextlib import suppress

import numpy as np
import scipy.sparse as sp

from ragst_sd import _keys
from ragst_sd._labels import label, labels
from ragst_sd._query import Query
from ragst_sd._validate import listing
from ragst_sd.reference.duplicates import find_duplicates, fingerprint
from ragst_sd.retrieval.bank import Bank
from ragst_sd.retrieval.projection import standardize

logger = logging.getLogger(__name__)

_NO_EXPRESSION = {"expression": sp.csr_matrix((0, 0)), "genes": (), "shared": ()}


def warn_of_copies(bank: Bank, query: Query) -> None:
    """Warn if a section of other donors is the query's own tissue, cut, rescaled or stored anew, as its tiles show.

    Its very image is left out as :func:`ragst_sd._eligibility.eligible_rows` does. Rows on disk are not looked at.
    """
    if hasattr(bank.embedding, "dask"):
        return
    statistics, finite, image = bank.header.sections, query.finite, str(query.header.get("image_hash", ""))
    xy = np.full((len(finite), 2), np.nan)
    # A prediction needs embeddings only, so the shapes may be gone.
    with suppress(KeyError, ValueError):
        xy = query.centers()
    of_query = fingerprint(
        "query",
        donors=query.labels(_keys.DONOR),
        image_hash="",
        embedding=query.standardized[finite],
        xy=xy[finite],
        **_NO_EXPRESSION,
    )
    copies = []
    for name, rows in bank.obs.groupby(_keys.SAMPLE, observed=True).indices.items():
        sample = label(name)
        # A renamed section is not found here. Only references that do not standardise embeddings get this far with one.
        at, raw = np.flatnonzero(labels(statistics.sample) == sample), np.asarray(bank.embedding[rows])
        section = fingerprint(
            sample,
            donors=set(labels(bank.obs[_keys.DONOR].iloc[rows].unique())),
            image_hash="",
            embedding=standardize(raw, statistics.mean[at], statistics.std[at]) if bank.header.standardize else raw,
            xy=bank.obs[[_keys.X_UM, _keys.Y_UM]].to_numpy(float)[rows],
            **_NO_EXPRESSION,
        )
        same_picture = image and image in statistics.image_hash[at]
        copies += [] if same_picture else [pair.second.sample for pair in find_duplicates((of_query, section))]
    if copies:
        logger.warning(
            "The query is the tissue of %s in the reference, as its tiles show, under another donor's name: it is "
            "predicted from itself, and accuracy is no evidence. Write the same donor into `obs[%r]`, or leave these "
            "sections out.",
            listing(copies),
            query.donor_key,
        )
