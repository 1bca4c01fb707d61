"""`rg.pl.viewer`."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from anndata import AnnData
from jinja2 import Environment
from spatialdata import SpatialData

from ragst_sd import _keys, _results
from ragst_sd._annotation import single_region
from ragst_sd._cited_values import Origin
from ragst_sd._elements import require_sdata
from ragst_sd._page import bears, read_text
from ragst_sd._replacing import replace_text
from ragst_sd._truth import measured_values
from ragst_sd._validate import require_key, require_positive
from ragst_sd.pl._section import read_section
from ragst_sd.pl._viewer_content import choose_genes, collect_numbers, collect_pictures, jpeg
from ragst_sd.retrieval.grounding import FLAGGED, MOST_UNLIKE, unlike_share

# The page's promise, in bytes.
LIMIT = 30_000_000
MARK = '<meta name="generator" content="ragst_sd viewer">'
# Decimals of values; the last one is given up before the limit on the size of the page is.
_DECIMALS = (3, 2)
_QUALITIES = (85, 72, 58, 45)
_SCRIPTS = ("decode.js", "numbers.js", "map.js", "details.js", "main.js")
_COLORMAPS = ("viridis", "viridis_r", "cividis", "PuOr_r")


@dataclass(frozen=True)
class Page:
    """A viewer page: shows itself in a notebook, and knows where it was written."""

    html: str = field(repr=False)
    path: Path | None
    """The file, if one was written."""
    height: int = 900
    """Height in a notebook, in pixels."""

    def _repr_html_(self) -> str:
        source = html.escape(self.html, quote=True)
        return (
            f'<iframe srcdoc="{source}" title="ragst_sd viewer" sandbox="allow-scripts" width="100%" '
            f'height="{self.height}" style="border: 1px solid #ccc"></iframe>'
        )


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
        `["upper"]` and `["disagreement"]`, `.obsm["retrieval_rows"]` and `["retrieval_weights"]`, the columns of `.obs`
        that say how well grounded a spot is, `.var["cv_pearson"]` and `["noise_ceiling"]`, and `.uns["retrieval"]`.
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
    require_sdata(sdata)
    require_positive(n_shown, "n_shown", whole=True)
    require_positive(height, "height", whole=True)
    target = None if path is None else Path(path)
    if target is not None and target.exists() and not bears(target, MARK):
        raise FileExistsError(f"`path` {str(path)!r} exists and is no viewer page. Choose another name.")
    prediction = _results.predicted(sdata, prediction_key, exact=True)
    table, bank = prediction.table, _results.matching_bank(prediction, reference)
    _results.require_columns(table, _results.OBS_COLUMNS)
    require_key(_keys.EVIDENCE, table.layers, "table.layers", "`rg.tl.predict` writes it; predict again.")
    origin = Origin(prediction, bank, choose_genes(prediction, genes))
    section = read_section(prediction)
    # Genes that were not asked for by name may be missing from the truth.
    named = None if genes is None else list(origin.names)
    truth = measured_values(prediction, truth_key, layer=layer, unit=unit, genes=named)
    measured = None if truth is None else truth.reindex(columns=origin.names).to_numpy()
    facts = _facts(prediction, single_region(table) if title is None else title)

    def pages() -> Iterator[str]:
        """The page, then with coarser pictures, and at last with fewer decimals."""
        pictures = None
        for most_decimals in _DECIMALS:
            arrays, about = collect_numbers(origin, measured, int(n_shown), most_decimals)
            if pictures is None:
                cited = bank.obs.index.get_indexer(about["names"]["cited"])
                thumbnails = reference.obsm.get(_keys.THUMBNAIL)
                pictures = collect_pictures(section, prediction.header["encoder"], thumbnails, cited)
            images, places, shown = pictures
            arrays |= places
            blocks = {name: _pack(values) for name, values in arrays.items()}
            described = {name: {"dtype": str(v.dtype), "shape": list(v.shape)} for name, v in arrays.items()}
            head = facts | about | {"image": shown, "blocks": described, "colormaps": _colormaps()}
            for quality in _QUALITIES:
                files = {kind: {str(i): jpeg(p, quality) for i, p in enumerate(images[kind])} for kind in images}
                yield _fill(head, {"numbers": blocks, **files})

    for page in pages():
        size = len(page.encode())
        if size <= LIMIT:
            break
    else:
        raise ValueError(
            f"A page of {table.n_obs} spots and {len(origin.genes)} genes would take {size / 1e6:.0f} MB, more than "
            f"{LIMIT / 1e6:.0f} MB. Choose fewer genes with `genes=`, or predict part of the section."
        )
    if target is not None:
        replace_text(target, page)
    return Page(page, target, int(height))


def _facts(prediction: _results.Prediction, title: str) -> dict[str, Any]:
    """What the page says about the whole prediction."""
    table, header, cited = prediction.table, prediction.header, prediction.cited
    unlike = unlike_share(table.obs[_keys.APPEARANCE_DISTANCE].to_numpy(float))
    return {
        "title": title,
        "method": str(header["method"]),
        "unit": str(header["unit"]),
        "centered": bool(header.get("center_sections", False)),
        "n_cited": len(cited),
        "donors": sorted(set(cited[_keys.DONOR].astype(str))),
        "share_outside": float(table.obs[_keys.OUT_OF_REFERENCE].to_numpy(bool).mean()),
        "share_unlike": round(unlike, 4) if unlike > MOST_UNLIKE else None,
        "far_percentile": 100 * (1 - FLAGGED),
        # Below these a spot gets a warning on the page.
        "little_evidence": 0.5,
        "little_trust": _results.MIN_CV_PEARSON,
    }


def _fill(head: dict[str, Any], data: dict[str, dict[str, str]]) -> str:
    """The page out of what its scripts read first, and texts that stand for bytes, by kind and name."""
    template, style = (read_text(f"pl/viewer_page/{name}") for name in ("page.html", "page.css"))
    script = "\n".join(read_text(f"pl/viewer_page/{name}") for name in _SCRIPTS)
    environment = Environment(autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    code = {"style": style, "style_digest": _digest(style), "script": script, "script_digest": _digest(script)}
    return environment.from_string(template).render(mark=MARK, head=head, data=data, **code)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _pack(values: np.ndarray) -> str:
    """Base64 of the compressed bytes, first all first bytes, then all second ones: like stands by like."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    planes = little.reshape(-1).view(np.uint8).reshape(-1, little.dtype.itemsize).T
    # No time stamp: the same input gives the same page.
    return base64.b64encode(gzip.compress(planes.tobytes(), compresslevel=6, mtime=0)).decode()


def _colormaps() -> dict[str, str]:
    """256 colours each, as hexadecimal digits."""
    steps = np.linspace(0, 1, 256)
    return {name: mpl.colormaps[name](steps, bytes=True)[:, :3].tobytes().hex() for name in _COLORMAPS}
