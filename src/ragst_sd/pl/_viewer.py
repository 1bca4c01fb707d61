"""`rg.pl.viewer`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ragst_sd import _keys
from ragst_sd._annotation import single_region
from ragst_sd._elements import require_sdata
from ragst_sd._page import bears
from ragst_sd._replacing import replace_text
from ragst_sd._results import (
    MIN_CV_PEARSON,
    MOST_UNLIKE,
    OBS_COLUMNS,
    matching_bank,
    predicted,
    require_columns,
    unlike_share,
)
from ragst_sd._validate import require_key, require_positive
from ragst_sd.pl._measured import measured_values
from ragst_sd.pl._section import read_section
from ragst_sd.pl._viewer_numbers import choose_genes
from ragst_sd.pl._viewer_page import MARK, Page, page_within_limit
from ragst_sd.retrieval.grounding import FLAGGED

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData


def viewer(
    sdata: SpatialData,
    reference: AnnData,
    *,
    prediction_key: str = "predicted",
    genes: str | Sequence[str] | None = None,
    truth_key: str | Literal[False] | None = None,
    layer: str | None = None,
    unit: str = "counts",
    n_shown: int = 12,
    title: str | None = None,
    path: str | os.PathLike[str] | None = "viewer.html",
    height: int = 900,
) -> Page:
    r"""Write one HTML page in which every predicted value can be traced to the measured spots it came from.

    The page needs no network and no server: open it in a browser of 2023 or later, send it by mail, or let a notebook
    show it. Spots are coloured by a gene, by a measure of trust (disagreement of the cited spots, width of the
    interval, distance to measured tissue), or by what the value rests on. Select a spot by a click near it, by its
    name, or with the arrow keys on the map. The page then shows its tile, the wider fields of view on the map, and the
    cited tiles with donor, weight, measured value and contribution. It also shows the contributions of the other cited
    spots and of the adjustment, and warnings. Pointing at a cited tile enlarges it next to the tile of the spot, at the
    same scale. Contributions add up to the prediction:

    .. math:: \hat y = a \sum_j w_j (y_j + c_j) + (1 - a)\, m + \text{adjustment}

    with the share a of retrieval, 1 where no regression takes part, and the mean m of the reference.

    Predictions, evidence and measured values are shown with three decimals and bounds of intervals with two, or with
    one decimal less if the page would otherwise exceed 30 MB. Contributions are computed in the page from these rounded
    values, so their last digit may be off by one. Spots have their true size; outlines other than discs and squares are
    drawn as discs with the same area.

    A spot has a warning if it is out of reference (far from measured tissue in the search space, or unlike every
    section of the reference according to `.obs["appearance_distance"]`; the warning says which), if its cited spots are
    from one donor, if less than half of its departure from the mean is evidence, if the method does not cite rows, and
    if intervals are valid for new spots or sections but not for new donors. A gene is grey, with the reason, if
    `cv_pearson` is below 0.1 or unknown.

    Parameters
    ----------
    sdata
        Object with the image, the shapes and a predicted table.
    reference
        The very reference that the prediction was made from. Built with thumbnails, the neighbours have pictures.
    prediction_key
        Name of the predicted table. Read are `.X`, `.layers["evidence"]`, where present `.layers["lower"]` and
        `["upper"]` and `["disagreement"]`, `.obsm["retrieval_rows"]` and `["retrieval_weights"]`, the columns of `.obs` that say how well
        grounded a spot is, `.var["cv_pearson"]` and `["noise_ceiling"]`, and `.uns["retrieval"]`.
    genes
        Genes of the page; the 200 best trusted if left out: by falling `cv_pearson`, or where that was not assessed by
        the variance of the prediction.
    truth_key
        Measured table whose values stand beside the predicted ones, normalised as the prediction is. The only one of
        the same shapes if left out; `False` for none.
    layer
        Layer of the measured table; `.X` if left out.
    unit
        `"counts"`, or `"log1p_cp10k"` if the layer is log1p of counts per 10,000 already.
    n_shown
        Number of cited spots shown; the remaining ones are one line.
    title
        Heading; the annotated element if left out.
    path
        File to write; `None` writes none. A file that is no viewer page is not replaced.
    height
        Height in a notebook, in pixels.

    Returns
    -------
    The page: shown by a notebook where it is the last line of a cell, with the text in `.html` and the file in
    `.path`. It never exceeds 30 MB: pictures of large sections are compressed more, and then the third decimal is left
    out.

    Raises
    ------
    FileExistsError
        If `path` is a file that is no viewer page.
    KeyError
        If a table, gene or layer does not exist, or the table lacks a column of `.obs`.
    TypeError
        If `sdata` is no SpatialData.
    ValueError
        If the table has lost its provenance, the image or the shapes are not in the object, the reference is another
        one, the truth shares no spots or is not counts, or the page would be larger than 30 MB.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=3, image_px=500)
    >>> rg.pp.embed_tiles(sections, model="texture", progress=False)
    >>> query = sections.pop("donor3")
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> rg.tl.fit(reference, method="knn", n_neighbors=10)
    >>> rg.tl.predict(query, reference)
    >>> page = rg.pl.viewer(query, reference, genes=list(reference.var_names[:5]), path=None)
    >>> len(page.html) < 1_000_000
    True
    """
    import pandas as pd

    require_sdata(sdata)
    require_positive(n_shown, "n_shown", whole=True)
    require_positive(height, "height", whole=True)
    target = None if path is None else Path(path)
    if target is not None and target.exists() and not bears(target, MARK):
        msg = f"`path` {str(path)!r} exists and is no viewer page; it is not replaced. Choose another name."
        raise FileExistsError(msg)
    table, header = predicted(sdata, prediction_key, exact=True)
    bank = matching_bank(reference, header)
    require_columns(table, OBS_COLUMNS)
    require_key(_keys.EVIDENCE, table.layers, "table.layers", "`rg.tl.predict` writes it; predict again.")
    chosen = choose_genes(table, genes)
    section = read_section(sdata, table, header, prediction_key)
    names = table.var_names[chosen]
    # Genes that were not asked for by name may be missing from the truth.
    asked = None if genes is None else list(names)
    truth = measured_values(sdata, table, header, truth_key, layer=layer, unit=unit, genes=asked)
    measured = None
    if truth is not None:
        measured = pd.DataFrame(truth[0], columns=truth[1]).reindex(columns=names).to_numpy()
    facts = _facts(table, header, single_region(table) if title is None else title)
    page = page_within_limit(
        bank, reference.obsm.get(_keys.THUMBNAIL), table, header, chosen, measured, section, int(n_shown), facts
    )
    if target is not None:
        replace_text(target, page)
    return Page(page, target, int(height))


def _facts(table: AnnData, header: dict[str, Any], title: str) -> dict[str, Any]:
    """What the page says about the whole prediction."""
    unlike = unlike_share(table.obs[_keys.APPEARANCE_DISTANCE].to_numpy(float))
    return {
        "title": title,
        "method": str(header["method"]),
        "unit": str(header["unit"]),
        "centered": bool(header.get("center_sections", False)),
        "n_cited": len(header[_keys.CITED]),
        "donors": sorted(set(header[_keys.CITED][_keys.DONOR].astype(str))),
        "share_outside": float(table.obs[_keys.OUT_OF_REFERENCE].to_numpy(bool).mean()),
        "share_unlike": round(unlike, 4) if unlike > MOST_UNLIKE else None,
        "far_percentile": 100 * (1 - FLAGGED),
        # Below these a spot gets a warning on the page.
        "little_evidence": 0.5,
        "little_trust": MIN_CV_PEARSON,
    }
