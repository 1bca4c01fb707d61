"""`rg.io.data_card`."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure

from ragst_sd import _keys
from ragst_sd._caveats import sentences
from ragst_sd._encoder_facts import encoder_facts
from ragst_sd._licenses import NO_DERIVATIVES, NON_COMMERCIAL, UNKNOWN, UNRECOGNISED, ranked, terms_of
from ragst_sd._page import Picture, bears, to_markdown
from ragst_sd._reference import read_header
from ragst_sd._replacing import replace_text, replaced_file
from ragst_sd.pl._style import EVIDENCE, shorten

PAGE = "README.md"
_TEMPLATE = "io/_data_card.md.jinja"
# At the top of a card, also of those that `rg.datasets.data_card` wrote.
_MARK = ".data_card -->"

# Below this, most genes of a whole transcriptome are seen in a minority of spots.
_SHALLOW = 1000
_FEW_SPOTS = 100
_LARGE_SHARE = 0.5
# ... and this many times what it were if all groups had the same number of spots.
_MUCH_LARGER = 1.5
_ENLARGED = 1.25
# A prediction warns from here on, too.
_DIFFERENT_RESOLUTION = 2.0

_MOST_LINES = 30


def data_card(reference: AnnData, *, path: str | PathLike[str] | None = None, name: str | None = None) -> str:
    """Describe a reference: its content, licences, citations, and what is missing.

    All facts come from the reference itself, not from the data it was built from.

    Parameters
    ----------
    reference
        Made by :func:`ragst_sd.tl.build_reference` or :func:`build_recipe`.
    path
        Folder to write the card and its pictures into; made if it does not exist. An earlier card in it is replaced,
        other files stay.
    name
        Title; that of the recipe if left out.

    Returns
    -------
    The card as Markdown. With `path`, `README.md`, `composition.png` (spots by organ, technology and donor) and
    `depth.png` (counts per spot by section, where the reference has counts) are written, and the card shows the
    pictures.

    The card tells first the most restrictive licence among the sources; then numbers, encoder, composition by organ,
    technology, donor and section, genes and panels, all licences, citations as BibTeX, and gaps and biases that the
    facts show. A citation is turned into the BibTeX of the catalogue where it is one of the catalogue's.

    Raises
    ------
    TypeError, ValueError
        If `reference` is not a reference.
    FileExistsError
        If `path` is a file, or holds a `README.md` that is not a data card.

    Examples
    --------
    >>> import ragst_sd as rg
    >>> sections = rg.datasets.synthetic(n_donors=2, image_px=500)
    >>> rg.pp.embed_tiles(sections, progress=False)
    >>> reference = rg.tl.build_reference(sections, use_rep="X_texture")
    >>> print(rg.io.data_card(reference, name="Synthetic tissue").splitlines()[2])
    # Synthetic tissue
    """
    facts = gather_facts(reference)
    facts["title"] = name or facts["recipe"]["name"] or "Reference"
    if path is None:
        return to_markdown(_TEMPLATE, facts)
    folder = Path(path)
    check_card_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts["pictures"] = draw_pictures(facts)
    for picture in facts["pictures"]:
        with replaced_file(folder / picture.file) as beside:
            beside.write_bytes(picture.png)
    text = to_markdown(_TEMPLATE, facts)
    # Last, so that a page never names pictures that are not there.
    replace_text(folder / PAGE, text)
    return text


def check_card_folder(folder: Path) -> None:
    """Raise a `FileExistsError` if a card cannot be written here without replacing something else."""
    page = folder / PAGE
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; the data card needs a folder of this name. Move it away.")
    if page.exists() and not bears(page, _MARK):
        raise FileExistsError(
            f"{page} exists and is not a data card; it is not replaced. Move it away, or choose another folder."
        )


def gather_facts(reference: AnnData) -> dict[str, Any]:
    """The facts of a reference, under the names that `_data_card.md.jinja` and `_caveats.yaml` have for them."""
    header = read_header(reference, "histology")
    columns = [_keys.DONOR, _keys.SAMPLE, _keys.TISSUE, _keys.TECHNOLOGY, _keys.PANEL]
    rows = reference.obs[columns].astype(str).reset_index(drop=True)
    counts = None
    if _keys.COUNTS in reference.layers:
        counts = pd.Series(np.asarray(reference.layers[_keys.COUNTS].sum(axis=1), dtype=float).ravel())
    sections = _sections(header, rows, counts)
    measured = np.asarray(reference.varm[_keys.MEASURED], dtype=bool)
    panels = pd.DataFrame({"panel": np.atleast_1d(header["panels"]), "genes": measured.sum(axis=0)})
    panels["spots"] = rows[_keys.PANEL].value_counts().reindex(panels["panel"], fill_value=0).to_numpy()
    citations = "\n\n".join(bibtex_of(sections["citation"]))
    facts = {
        "pictures": [],
        "header": header,
        "recipe": {"name": "", "text": "", "key": "", **header.get("recipe", {})},
        "encoder": encoder_facts(header["encoder"]),
        "rows": rows,
        "sections": sections,
        "counts": counts,
        "panels": panels,
        "compositions": {
            "organ": composition(rows, _keys.TISSUE),
            "technology": composition(rows, _keys.TECHNOLOGY),
            "donor": composition(rows, _keys.DONOR).drop(columns="donors"),
        },
        "n_donors": rows[_keys.DONOR].nunique(),
        "n_genes": reference.n_vars,
        "n_shared_genes": int(measured.all(axis=1).sum()),
        "n_size_factor_genes": len(np.atleast_1d(header["normalization"]["size_factor_genes"])),
        "licenses": ranked(sections["license"]),
        "bibtex": citations,
    }
    facts |= _gaps(facts)
    return facts | {"gaps": sentences("gaps", facts)}


def composition(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Spots, sections and donors of each value of a column, the most spots first."""
    samples, donors = (_keys.SAMPLE, "nunique"), (_keys.DONOR, "nunique")
    table = rows.groupby(column).agg(spots=(column, "size"), sections=samples, donors=donors)
    return table.sort_values("spots", ascending=False, kind="stable")


def _sections(header: dict[str, Any], rows: pd.DataFrame, counts: pd.Series | None) -> pd.DataFrame:
    """One line per section: what it is, spots, median_counts, image_mpp, upsampling, image_hash, license, citation."""
    grouped = rows.groupby(_keys.SAMPLE)
    sections = grouped.agg(lambda values: ", ".join(sorted(set(values))))
    sections["spots"] = grouped.size()
    sections["median_counts"] = np.nan if counts is None else counts.groupby(rows[_keys.SAMPLE]).median()
    statistics = {name: header["sections"][name] for name in ("sample", "image_mpp", "upsampling", "image_hash")}
    known = pd.DataFrame(statistics).astype({"sample": str}).drop_duplicates("sample").set_index("sample")
    sources = header["sources"][["license", "citation"]].astype(str)
    sections = sections.join(known).join(sources.set_axis(sources.index.astype(str)))
    return sections.fillna({"license": _keys.UNKNOWN, "citation": _keys.UNKNOWN, "image_hash": ""})


def _gaps(facts: dict[str, Any]) -> dict[str, Any]:
    """What may be missing or out of balance."""
    sections, resolution = facts["sections"], facts["sections"]["upsampling"]
    tables, terms, cited = facts["compositions"], sections["license"].map(terms_of), sections["citation"]
    donors_of = tables["organ"]["donors"]
    pictured = sections[sections["image_hash"].astype(str) != ""]
    by_picture = [list(group.index) for _, group in pictured.groupby("image_hash")]

    def where(mask: Any) -> list[str]:
        return list(sections.index[mask])

    return {
        "lone_organs": list(donors_of.index[donors_of == 1]),
        "most": {what: _dominant(table["spots"]) for what, table in tables.items()},
        "only": {what: table.index[0] if len(table) == 1 else "" for what, table in tables.items()},
        "unknown": {what: int(table["spots"].get(_keys.UNKNOWN, 0)) for what, table in tables.items()},
        "one_publication": cited.nunique() == 1 and cited.iloc[0] != _keys.UNKNOWN,
        "shallow_counts": _SHALLOW,
        "shallow": where(sections["median_counts"] < _SHALLOW),
        "few_spots": _FEW_SPOTS,
        "small": where(sections["spots"] < _FEW_SPOTS),
        "largest_upsampling": resolution.max(),
        "enlarged": where(resolution > _ENLARGED),
        "resolutions_differ": resolution.max() / resolution.min() > _DIFFERENT_RESOLUTION,
        "without_mpp": where(sections["image_mpp"].isna()),
        "same_pictures": [names for names in by_picture if len(names) > 1],
        "unlicensed": where(terms == UNKNOWN),
        "unrecognised_terms": UNRECOGNISED in set(terms),
        "unclear_terms": bool({UNKNOWN, UNRECOGNISED} & set(terms)),
        "restricted_terms": bool({NON_COMMERCIAL, NO_DERIVATIVES} & set(terms)),
        "uncited": where(cited == _keys.UNKNOWN),
    }


def _dominant(spots: pd.Series) -> tuple[str, float] | None:
    """The largest of several groups and its share of the spots, if that is far more than an equal one."""
    share = spots.iloc[0] / spots.sum()
    large = len(spots) > 1 and share > max(_LARGE_SHARE, _MUCH_LARGER / len(spots))
    return (spots.index[0], share) if large else None


def bibtex_of(citations: Iterable[str]) -> list[str]:
    """Each citation as BibTeX: the entry of the catalogue that is cited so, else what was written, as a note."""
    from ragst_sd.datasets._catalog import catalog_entries, citation_bibtex, citation_text

    known = {citation_text(entry): citation_bibtex(entry) for entry in catalog_entries().values()}
    entries, n_notes = [], 0
    for citation in sorted(set(citations) - {_keys.UNKNOWN}):
        if citation in known:
            entries.append(known[citation])
        elif citation.lstrip().startswith("@"):
            entries.append(citation.strip())
        else:
            n_notes += 1
            # Braces of its own would end the field.
            text = " ".join(citation.replace("{", "(").replace("}", ")").split())
            entries.append(f"@misc{{source{n_notes},\n  note = {{{text}}},\n}}")
    return entries


def draw_pictures(facts: dict[str, Any]) -> list[Picture]:
    """Composition, and depth where there are counts."""
    caption = "Spots by organ, technology and donor."
    pictures = [Picture("composition.png", _png(draw_composition(facts["compositions"])), caption)]
    if facts["counts"] is not None:
        caption = (
            f"Counts per spot in the {facts['n_genes']:,} genes kept: median, middle half (box), and 5 to 95 % (line) "
            "of each section."
        )
        figure = draw_depth(facts["counts"], facts["rows"][_keys.SAMPLE])
        pictures.append(Picture("depth.png", _png(figure), caption))
    return pictures


def draw_composition(compositions: dict[str, pd.DataFrame]) -> Figure:
    """Bars of spots by organ, technology and donor, of the largest groups."""
    bars = {name: table["spots"].head(_MOST_LINES) for name, table in compositions.items()}
    heights = [len(spots) + 2 for spots in bars.values()]
    figure = Figure(figsize=(7.6, 0.3 * sum(heights)), dpi=150, layout="constrained")
    for ax, (name, spots) in zip(figure.subplots(3, 1, height_ratios=heights), bars.items(), strict=True):
        title = name.capitalize() + _without(len(compositions[name]) - len(spots))
        spots.rename(_short)[::-1].plot.barh(ax=ax, color=EVIDENCE, xlabel="spots", ylabel="", title=title)
        ax.bar_label(ax.containers[0], fmt="{:,.0f}", padding=4)
        ax.margins(x=0.15)
    return figure


def draw_depth(counts: pd.Series, samples: pd.Series) -> Figure:
    """Boxes of the counts per spot of each section, the deepest on top."""
    deepest = counts.groupby(samples).median().sort_values(ascending=False, kind="stable").head(_MOST_LINES).index
    figure = Figure(figsize=(7.6, 4.8), dpi=150, layout="constrained")
    ax = figure.subplots()
    values = [counts[samples == name] for name in deepest]
    ax.boxplot(values, whis=(5, 95), showfliers=False, tick_labels=[_short(name) for name in deepest])
    ax.tick_params(axis="x", rotation=90)
    ax.set(yscale="log", ylabel="counts per spot", title="Depth" + _without(samples.nunique() - len(deepest)))
    return figure


def _without(n: int) -> str:
    return f", without {n} others" if n else ""


def _short(name: object) -> str:
    return shorten(str(name), 30)


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
