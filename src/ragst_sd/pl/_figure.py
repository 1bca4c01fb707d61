"""Where a picture is drawn, and what happens to it afterwards: shared by all functions of `rg.pl`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import IO, Any, TypedDict, TypeVar, cast

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.gridspec import GridSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ragst_sd._validate import require_positive, require_type

F = TypeVar("F", bound=Callable[..., Any])

_SILENT_BACKENDS = {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}
_LOOK: Any = {
    "font.size": 10,
    "axes.titlesize": "medium",
    "axes.labelsize": "small",
    "legend.fontsize": "small",
    "xtick.labelsize": "small",
    "ytick.labelsize": "small",
    "axes.titlelocation": "left",
    "axes.edgecolor": "0.6",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.93",
    "legend.frameon": False,
    "legend.borderpad": 0,
    "xtick.color": "0.6",
    "ytick.color": "0.6",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
}
# Resolution of files, where the caller asks for no other.
_DPI = 200
# Inches around each panel.
_PADS: dict[str, Any] = {"w_pad": 0.08, "h_pad": 0.08}
_FIGURE_PARAMETERS = """\
figsize, dpi
    Size of a new figure in inches, and its resolution; `dpi` also holds for `save`, which writes 200 dpi if left out.
ax
    Axes whose place the picture fills with axes of its own; a new figure is made if left out.
show
    Show a new figure; by default if it is neither saved nor returned.
save
    File to write.
return_ax
    Return the axes."""


class Drawing(TypedDict, total=False):
    """Arguments that all pictures share."""

    figsize: tuple[float, float] | None
    dpi: float | None
    ax: Axes | None
    show: bool | None
    save: str | os.PathLike[str] | IO[bytes] | None
    return_ax: bool


def draws(function: F) -> F:
    """A decorator of functions that take `**drawing` and hand it to :func:`picture`.

    Signature and docstring then list these arguments by name, and what the function draws on is returned only if
    `return_ax` asks for it.
    """
    signature = inspect.signature(function)
    *parameters, _drawing = signature.parameters.values()
    _width, _height, *shared = inspect.signature(picture).parameters.values()
    parameters += shared
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    if function.__doc__:
        function.__doc__ = inspect.cleandoc(function.__doc__).replace("{figure_parameters}", _FIGURE_PARAMETERS)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        axes = function(*args, **kwargs)
        return axes if kwargs.get("return_ax") else None

    return cast("F", call)


@contextmanager
def picture(
    width: float,
    height: float,
    *,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | IO[bytes] | None = None,
    return_ax: bool = False,
) -> Iterator[FigureBase]:
    """A figure to draw into, as large as designed or in the place of `ax`; saved, shown and closed as asked afterwards.

    A picture inside the caller's axes is never shown. A new figure is shown if `show` is true, or if it is `None` and
    the picture is neither saved nor returned; never by a backend that cannot show anything. A new figure that was saved
    and is neither shown nor returned is closed.

    Raises
    ------
    TypeError
        If `ax` is not a matplotlib Axes.
    ValueError
        If `figsize` is given along with `ax`, or is not two numbers above zero.
    """
    if dpi is not None:
        require_positive(dpi, "dpi")
    if ax is not None:
        require_type(ax, Axes, "ax")
        if figsize is not None:
            raise ValueError("`figsize` is for a new figure; `ax` has its size already. Give one of them.")
        parent: Any = ax.figure.figure
        others = [artist for artist in (*parent.axes, *parent.texts, *parent.legends) if artist.get_in_layout()]
        figure: Any = _figure_in(ax)
    else:
        size = (width, height) if figsize is None else figsize
        require_positive(min(size), "figsize")
        figure = plt.figure(figsize=size, dpi=dpi, layout=ConstrainedLayoutEngine(**_PADS))
    root: Any = figure.figure
    # Letters follow the size of the picture, so that columns of text keep clear of each other; up to a point.
    scale = min(figure.bbox.width / root.dpi / width, figure.bbox.height / root.dpi / height)
    letters: Any = {"font.size": _LOOK["font.size"] * min(max(scale, 0.3), 1.6)}
    with mpl.rc_context(_LOOK | letters):
        yield figure
    if ax is not None and root.get_layout_engine() is None:
        # What the caller drew stays where it is.
        for artist in others:
            artist.set_in_layout(False)
        ConstrainedLayoutEngine(**_PADS).execute(root)
        for artist in others:
            artist.set_in_layout(True)
    if save is not None:
        root.savefig(save, dpi=dpi or (_DPI if ax is None else "figure"))
    if ax is None:
        wanted = (save is None and not return_ax) if show is None else show
        if wanted and mpl.get_backend().lower() not in _SILENT_BACKENDS:
            plt.show()
        elif save is not None and not return_ax:
            plt.close(root)


def _figure_in(ax: Axes) -> FigureBase:
    """A figure inside the caller's figure, in the place of the axes, which become invisible."""
    ax.set_axis_off()
    parent: Any = ax.figure
    place = ax.get_subplotspec()
    if place is None or parent.get_layout_engine() is None:
        box = ax.get_position()
        widths, heights = (box.x0, box.width, 1 - box.x1), (1 - box.y1, box.height, box.y0)
        place = GridSpec(3, 3, parent, width_ratios=widths, height_ratios=heights)[1, 1]
    return parent.add_subfigure(place)
