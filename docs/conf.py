"""Configuration of the documentation; see https://www.sphinx-doc.org/en/master/usage/configuration.html."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import warnings
from importlib import import_module
from importlib.metadata import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import jupyter_server_mathjax
from sphinx.ext import intersphinx

import ragst_sd
from ragst_sd._renamed import SUBMODULES

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

# It calls what Sphinx will drop one day, once for every type.
warnings.filterwarnings("ignore", category=PendingDeprecationWarning, module="sphinx_autodoc_typehints")
warnings.filterwarnings("ignore", category=DeprecationWarning, module="sphinx_autodoc_typehints")

# Notebooks lie where people look for them; Sphinx and its links need them among the pages.
_HERE = Path(__file__).parent
shutil.copytree(_HERE.parent / "tutorials", _HERE / "tutorials", dirs_exist_ok=True)

# Without a network the inventories of other projects cannot be loaded: links into them are left out, not failed.
OFFLINE = os.environ.get("RAGST_SD_DOCS_OFFLINE", "") not in ("", "0")

# Functions as they are written: the names of types stand in their own modules, not in that of what they are wrapped in.
for part in SUBMODULES:
    package = import_module(f"ragst_sd.{part}")
    for name in package.__all__:
        setattr(package, name, inspect.unwrap(getattr(package, name)))

project = "ragst_sd"
author = "ragst_sd developers"
copyright = "2026, ragst_sd developers"
version = release = ragst_sd.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "catalogue",
]
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "unsrt"
bibtex_reference_style = "author_year"
exclude_patterns = ["_build", "Thumbs.db", ".DS_Store", "**.ipynb_checkpoints", "tutorials/README.md"]
source_suffix = {".rst": "restructuredtext", ".ipynb": "myst-nb", ".md": "myst-nb"}
default_role = "literal"
nitpicky = not OFFLINE

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # sphinx_autodoc_typehints writes them into the lists of parameters
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_include_init_with_doc = False
napoleon_use_rtype = False
napoleon_use_param = True
typehints_defaults = "braces"
always_use_bars_union = True

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True

intersphinx_mapping = (
    {}
    if OFFLINE
    else {
        name: (url, None)
        for name, url in {
            "anndata": "https://anndata.readthedocs.io/en/stable/",
            "geopandas": "https://geopandas.org/en/stable/",
            "matplotlib": "https://matplotlib.org/stable/",
            "numpy": "https://numpy.org/doc/stable/",
            "pandas": "https://pandas.pydata.org/pandas-docs/stable/",
            "python": "https://docs.python.org/3/",
            "scanpy": "https://scanpy.readthedocs.io/en/stable/",
            "spatialdata": "https://spatialdata.scverse.org/en/stable/",
            "spatialdata-io": "https://spatialdata.scverse.org/projects/io/en/latest/",
            "squidpy": "https://squidpy.readthedocs.io/en/stable/",
            "torch": "https://docs.pytorch.org/docs/stable/",
            "xarray": "https://docs.xarray.dev/en/stable/",
        }.items()
    }
)

html_theme = "sphinx_book_theme"
html_title = "ragst_sd"
html_theme_options = {
    "navbar_persistent": [],
    "navigation_with_keys": True,
    "repository_url": dict(url.split(", ") for url in metadata("ragst_sd").get_all("Project-URL"))["Source"],
    "show_navbar_depth": 1,
    "use_repository_button": True,
}
# MathJax with its fonts as a package: equations are shown without a network.
html_static_path = ["_static", str(Path(jupyter_server_mathjax.__file__).parent / "static")]
mathjax_path = "MathJax.js?config=TeX-AMS-MML_HTMLorMML-full"
mathjax2_config = {
    "HTML-CSS": {"availableFonts": [], "webFont": "STIX-Web", "scale": 95},
    "fast-preview": {"disabled": True},
    "showMathMenu": False,
}
myst_update_mathjax = False
html_css_files = ["tables.css"]
html_extra_path = ["llms.txt"]  # at the root of the site, where assistants look for it
pygments_style = "default"

# Types are documented under the names by which they are imported, not where they are defined.
_PUBLIC = {
    "anndata._core.anndata.AnnData": "anndata.AnnData",
    "matplotlib.axes._axes.Axes": "matplotlib.axes.Axes",
    "numpy.random._generator.Generator": "numpy.random.Generator",
    "pandas.core.frame.DataFrame": "pandas.DataFrame",
    "pathlib._local.Path": "pathlib.Path",
    "spatialdata._core.spatialdata.SpatialData": "spatialdata.SpatialData",
}


def resolve_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.reference | None:
    """Look up a type that other projects list under its public name."""
    if node.get("reftarget") not in _PUBLIC:
        return None
    node["reftarget"] = _PUBLIC[node["reftarget"]]
    return intersphinx.missing_reference(app, env, node, contnode)


def relink_tutorials(app: Sphinx, docname: str, content: list[str]) -> None:
    """Links of notebooks to `../docs/` lead from where they were copied to."""
    if docname.startswith("tutorials/"):
        content[0] = content[0].replace("](../docs/", "](../")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", relink_tutorials)
    app.connect("missing-reference", resolve_public_name)
