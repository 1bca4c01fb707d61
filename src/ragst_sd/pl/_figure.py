"""Where a picture is drawn, and what happens to it afterwards: shared by all functions of `rg.pl`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any

from ragst_sd._validate import require_positive, require_type

if TYPE_CHECKING:
    import os

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SILENT_BACKENDS = {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}
# Letters neither vanish nor shout when a picture is drawn much smaller or larger than designed.
_SMALLEST, _LARGEST = 0.55, 1.6


@dataclass(frozen=True)
class Stage:
    """The place that a picture fills. Layouts are written in inches of the design and scaled to fit the place."""

    figure: Figure
    place: Axes
    """Invisible axes; the picture's own axes are laid inside."""
    own: bool
    """Whether the figure was made here."""
    width: float
    """Width of the design in inches."""
    height: float
    """Height of the design in inches."""
    scale: float
    """Real inches per inch of the design."""
    margin: tuple[float, float]
    """Left and bottom margin around the design, as fractions of the place."""
    down: float = 0.0
    """Inches of the design by which everything lies lower: pictures are made of blocks on top of each other."""

    def lowered(self, inches: float) -> Stage:
        """The same stage, seen from a block that starts lower."""
        return replace(self, down=self.down + inches)

    def axes(self, left: float, top: float, width: float, height: float, label: str = "") -> Axes:
        """Axes whose upper left corner lies `left` and `top` inches from that of the design."""
        ax = self.place.inset_axes((*self._at(left, top + height), *self._size(width, height)))
        ax.set_label(label)
        return ax

    def text(self, left: float, top: float, text: str, *, size: float, **style: Any) -> Any:
        """Text at a point of the design; `size` in points of the design."""
        where = self.place.transAxes
        return self.place.text(*self._at(left, top), text, fontsize=self.points(size), transform=where, **style)

    def points(self, size: float) -> float:
        """Points of the design in real points."""
        return size * min(max(self.scale, _SMALLEST), _LARGEST)

    def _size(self, width: float, height: float) -> tuple[float, float]:
        return (
            width / self.width * (1 - 2 * self.margin[0]),
            height / self.height * (1 - 2 * self.margin[1]),
        )

    def _at(self, left: float, top: float) -> tuple[float, float]:
        x, y = self._size(left, self.height - top - self.down)
        return x + self.margin[0], y + self.margin[1]


def open_stage(
    width: float, height: float, *, ax: Axes | None, figsize: tuple[float, float] | None, dpi: float | None
) -> Stage:
    """A stage for a design of `width` x `height` inches: in the place of `ax`, or in a new figure.

    Raises
    ------
    TypeError
        If `ax` is not a matplotlib Axes.
    ValueError
        If `figsize` is given along with `ax`, or is not two numbers above zero.
    """
    from matplotlib.axes import Axes

    if dpi is not None:
        require_positive(dpi, "dpi")
    if ax is not None:
        require_type(ax, Axes, "ax")
        if figsize is not None:
            msg = "`figsize` is for a new figure; `ax` has its size already. Give one of them."
            raise ValueError(msg)
        figure, place, own = ax.figure.figure, ax, False
        extent = ax.get_window_extent()
        real: tuple[float, ...] = (extent.width / figure.dpi, extent.height / figure.dpi)
    else:
        import matplotlib.pyplot as plt

        real = (width, height) if figsize is None else tuple(figsize)
        if len(real) != 2:
            msg = f"`figsize` is {figsize!r}; it must be (width, height) in inches."
            raise ValueError(msg)
        for edge in real:
            require_positive(edge, "figsize")
        figure = plt.figure(figsize=real, dpi=dpi)
        place, own = figure.add_axes((0, 0, 1, 1)), True
    place.set_axis_off()
    scale = min(float(real[0]) / width, float(real[1]) / height)
    margin = (0.5 - 0.5 * scale * width / float(real[0]), 0.5 - 0.5 * scale * height / float(real[1]))
    return Stage(figure, place, own, width, height, scale, margin)


def finish(
    stage: Stage,
    axes: Any,
    *,
    show: bool | None,
    save: str | os.PathLike[str] | IO[bytes] | None,
    return_ax: bool,
    dpi: float | None,
) -> Any:
    """Save, show and return a picture as asked.

    A picture inside the caller's axes is never shown. A new figure is shown if `show` is true, or if it is `None` and
    the picture is neither saved nor returned; never by a backend that cannot show anything. A new figure that was saved
    and is neither shown nor returned is closed.
    """
    if save is not None:
        stage.figure.savefig(save, dpi="figure" if dpi is None else dpi)
    if stage.own:
        import matplotlib as mpl
        import matplotlib.pyplot as plt

        wanted = (save is None and not return_ax) if show is None else show
        shown = wanted and mpl.get_backend().lower() not in _SILENT_BACKENDS
        if shown:
            plt.show()
        elif save is not None and not return_ax:
            plt.close(stage.figure)
    return axes if return_ax else None
