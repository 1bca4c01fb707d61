"""Writes docs/llms.txt: all that a program which writes code needs to get calls of ragst_sd right.

    python tools/make_llms.py

The first part, in HEAD below, is written by people; its code is run by tests/test_llms.py. The second part is made of the
signatures and docstrings of all public functions.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path

SUBMODULES = {
    "datasets": "tissue to try it on, public data sets",
    "pp": "preparation: tiles and embeddings",
    "tl": "tools: reference, fit, prediction, evaluation",
    "get": "what a result rests on, as data frames",
    "pl": "pictures",
    "io": "reading and writing",
}
TARGET = Path(__file__).parents[1] / "docs" / "llms.txt"

HEAD = """\
# ragst_sd

> Python package (`pip install ragst-sd`, `import ragst_sd as rg`). Predicts spatial gene expression from H&E by retrieval of measured
> tissue that looks alike, and keeps for every predicted value the measured spots it came from. Works on SpatialData and AnnData.

## Rules that make calls right

- Data come first and by position (`sdata`, then `reference`); every other argument is given by name.
- Functions change the object and return `None`, unless `inplace=False`. `rg.tl.build_reference` and everything in `rg.get` return something.
- The order is: `rg.pp.embed_tiles` on EVERY section (it takes a mapping of them), query included, with the same arguments; `rg.tl.build_reference` on the measured
  sections; `rg.tl.fit(reference)`; `rg.tl.predict(query, reference)`. Predicting from an unfitted reference is an error.
- A reference is a plain AnnData. There is no class to instantiate and no model object: the fit lies in `reference.uns["ragst"]["fit"]`.
- `use_rep` is the literal key in `.obsm`: `"X_" + model`, so `"X_texture"` for `model="texture"`, unless `key_added` was given.
- The result is a table of the same SpatialData: `sdata.tables["predicted"]`. `.X` is log1p of counts per 10,000; `.layers["evidence"]` the
  weighted mean of measured values, `.X - evidence` the adjustment; `.obs["out_of_reference"]`, `["effective_n"]`, `["n_donors"]`
  say how well a spot is grounded; `.uns["retrieval"]` the provenance. Other functions find it by `prediction_key="predicted"`.
- Counts of a measured section lie in `sdata.tables["table"].X`, its donor in `.obs["donor"]`. Give raw counts; do not normalise before.
- Rows of the query's own donor are never used. A query without the column `donor` counts as a new donor.
- Microns per pixel must be known: `rg.pp.set_image_mpp(sdata, image_key="he", mpp=0.5)`, unless the reader has set it.
- No spots? `rg.pp.tile_grid(sdata, image_key="he")` lays tiles over the tissue; then embed with `shapes_key="tiles"`.
- Accuracy is measured on held-out donors: `rg.tl.cross_validate(reference)`, or `rg.tl.evaluate(sdata)` where the query was measured too.
- `rg.pl` functions save with `save="x.png"` and return Axes with `return_ax=True`.
- Errors list what is available and say what to do: read them. Nothing is pickled; write references with `rg.io.write_reference`.

## Predict a donor that was held out

```python
import ragst_sd as rg

sections = rg.datasets.synthetic(n_donors=3)  # {"donor1": SpatialData, ...}
rg.pp.embed_tiles(sections, image_key="he", model="texture")  # or "uni2", any timm model name
query = sections.pop("donor3")
reference = rg.tl.build_reference(sections, use_rep="X_texture")
rg.tl.fit(reference, method="knn")  # left out: method="rag", learned retrieval
rg.tl.predict(query, reference)
scores = rg.tl.evaluate(query, metrics=["pearson"])  # long: gene, sample, metric, value
```

## Ask where a value comes from

```python
table = query.tables["predicted"]
spot, gene = table.obs_names[0], "EPCAM"
rg.get.neighbors(query, obs_names=spot)  # cited spots: donor, sample, distance, weight, license
rg.get.explain(query, reference, obs_names=spot, genes=gene)  # column contribution adds up to table[spot, gene].X
rg.pl.retrieval(query, reference, obs_names=spot, genes=gene, save="retrieval.png")
rg.pl.viewer(query, reference, genes=[gene], path="viewer.html")
rg.tl.report(query, reference, path="card")  # card.md and card.html
```

## Intervals, and genes that can be trusted

```python
rg.tl.calibrate(reference, levels=[0.5])  # needs two donors at least
rg.tl.predict(query, reference, intervals=0.5)  # layers lower and upper
rg.pp.filter_predicted(query, min_cv_pearson=0.1)
```

## A slide without spots

```python
slide = rg.io.read_slide("slide.tif")  # svs, ndpi, mrxs, tif, ...
rg.pp.tile_grid(slide, image_key="he", tile_px=224, mpp=0.5)
rg.pp.embed_tiles(slide, image_key="he", shapes_key="tiles", model="texture")
rg.tl.predict(slide, reference, table_key="tiles_table")
```

## Keep a reference

```python
rg.io.write_reference(reference, "reference.zarr.zip", overwrite=True)
reference = rg.io.read_reference("reference.zarr.zip")  # lazy=True leaves it on disk
```

## How cells respond to a gene perturbation

```python
import anndata as ad
import numpy as np

rng = np.random.default_rng(0)
cells = ad.AnnData(rng.poisson(2.0, size=(120, 210)).astype("float32"))  # counts
cells.obs["perturbation"] = np.repeat(["control", "STAT1", "JAK2", "IRF1"], 30)
embedding = {"STAT1": [1.0, 0.2], "JAK2": [0.9, 0.4], "IRF1": [0.8, 0.1], "STAT2": [1.0, 0.1]}
responses = rg.tl.build_perturbation_reference(cells, embedding=embedding)
rg.tl.fit(responses, method="knn", n_neighbors=2)
controls = cells[cells.obs["perturbation"] == "control"]
predicted = rg.tl.perturb(controls, responses, perturbations=["STAT2"])  # X = source + layers["response"]
```

## Wrong, and right

- `rg.tl.predict(query, reference, "X_texture")`: arguments after the objects go by name, `use_rep="X_texture"`.
- `adata = rg.tl.predict(query, reference)`: it returns `None`; take `query.tables["predicted"]`, or `inplace=False`.
- `rg.tl.build_reference([s1, s2])`: `use_rep` is required.
- `rg.pl.prediction(query, gene="EPCAM")`: `genes=` and `obs_names=` take a name or a list, everywhere.
- `rg.get.explain(query, obs_names=...)`: the reference goes second; the table only points to it.
- `sc.pp.normalize_total` before `rg.tl.build_reference`: give counts, or say `unit="log1p_cp10k"`.

"""


def signature(name: str, function: object) -> str:
    """A signature in one line, with types as they are written."""
    given = inspect.signature(function)  # type: ignore[arg-type]
    parts, starred = [], False
    for argument in given.parameters.values():
        if argument.kind is argument.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        default = "" if argument.default is argument.empty else f" = {argument.default!r}"
        parts.append(f"{argument.name}: {argument.annotation}{default}")
    return f"rg.{name}({', '.join(parts)}) -> {given.return_annotation}"


def summary(function: object) -> str:
    """First sentence of a docstring, in one line, without roles of Sphinx."""
    first = (inspect.getdoc(function) or "").split("\n\n")[0]
    return re.sub(r":\w+:`~?(?:ragst_sd\.)?([^`]+)`", r"`\1`", " ".join(first.split()))


def returned(function: object) -> str:
    """First sentence of the section "Returns", and the fields that it describes one by one."""
    doc = inspect.getdoc(function) or ""
    section = re.split(r"\n\w+\n-{3,}\n", doc.partition("Returns\n-------\n")[2])[0].strip()
    paragraph = " ".join(section.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.:]) (?=[A-Z`])", paragraph)[0].rstrip(":")
    lines = section.splitlines()
    fields = [line.strip() for line, after in pairwise(lines) if line[:1].strip() and after.startswith("    ")]
    fields += re.findall(r"^- (`\w+`(?:, `\w+`)*)", section, flags=re.MULTILINE)
    told = re.sub(r":\w+:`~?(?:ragst_sd\.)?([^`]+)`", r"`\1`", sentence)
    told = told if told.endswith(".") else f"{told}."
    return f"{told} Fields: {'; '.join(fields)}." if fields else told


def text() -> str:
    """The whole file."""
    parts = [HEAD + "## All functions\n"]
    for submodule, about in SUBMODULES.items():
        module = import_module(f"ragst_sd.{submodule}")
        parts.append(f"### rg.{submodule}: {about}\n")
        for name in module.__all__:
            function = getattr(module, name)
            parts.append(
                f"- `{signature(f'{submodule}.{name}', function)}`\n  {summary(function)} Returns: {returned(function)}"
            )
        parts.append("")
    parts.append(
        "### rg.settings: one object for the session\n\n"
        "- `rg.settings.device`, `.batch_size`, `.progress`, `.cache_dir`; `with rg.settings.override(progress=False): ...`\n"
    )
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
