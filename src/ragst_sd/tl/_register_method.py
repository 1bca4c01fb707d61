"""`rg.tl.register_method`."""

from __future__ import annotations

from ragst_sd._validate import listing, require_type
from ragst_sd.retrieval.method import Method
from ragst_sd.retrieval.methods import METHODS


def register_method(name: str, method: Method) -> None:
    """Register your own method for :func:`ragst_sd.tl.fit` and everything that uses its fits.

    A method predicts expression as evidence (a weighted average of measured rows) plus an adjustment. It is registered
    for the running process. A program that opens its fits later must register it first. Methods of responses to
    perturbations cannot be registered.

    Parameters
    ----------
    name
        Name for `method=`. The names of the package's methods are taken.
    method
        A :class:`ragst_sd.retrieval.method.Method`: a dataclass of options, and functions on arrays, `fit`, `select`
        (rows to cite and their weights) and `answer` (values from these rows).

    Returns
    -------
    `None`. Registering the same method again changes nothing.

    Raises
    ------
    TypeError
        If `name` is not a text or `method` not a `Method`.
    ValueError
        If the name is empty or taken by another method.

    Examples
    --------
    All weight on the nearest row:

    >>> import numpy as np
    >>> import ragst_sd as rg
    >>> from ragst_sd.retrieval.evidence import cite
    >>> from ragst_sd.retrieval.method import Method
    >>> from ragst_sd.retrieval.options import CitingOptions
    >>> def select(parameters, bank, query):
    ...     weights = np.zeros(query.candidates.rows.shape)
    ...     weights[:, 0] = 1.0
    ...     return cite(query, weights)
    >>> rg.tl.register_method("nearest", Method(CitingOptions, fit=lambda bank, run: {}, select=select))

    `rg.tl.fit(reference, method="nearest")` works with that, and all that comes after it: prediction, explanation,
    intervals and cross-validation.
    """
    require_type(name, str, "name")
    require_type(method, Method, "method", "Make one with `ragst_sd.retrieval.method.Method`.")
    if not name or METHODS.get(name, method) is not method:
        raise ValueError(
            f"`name` is {name!r}, which is {'taken' if name else 'empty'}; choose another than {listing(METHODS)}."
        )
    METHODS[name] = method
