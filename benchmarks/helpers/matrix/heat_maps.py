"""Heat map of a matrix: accuracies as colours and numbers, with their intervals."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # needs no display; must come before pyplot is imported

import numpy as np
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from benchmarks.helpers.matrix.settings import BASE, NAMES
from benchmarks.helpers.matrix.tables import MARKS, Matrix, shown

COLOURS = "YlGnBu"
"""Its lightness changes evenly, and colour-blind readers can tell its colours apart."""

_SHORT = {"Fundus Photography": "Fundus", "Other Biological Attributes": "Other Attributes"}


def draw(matrix: Matrix, folder: Path) -> None:
    """Write `<matrix>.png` and `<matrix>.svg` to `folder`."""
    columns, rows = NAMES[matrix.axis], matrix.row_names
    cells = {(cell.row, cell.column): cell for cell in matrix.cells}
    accuracy = np.array([[cells[row, column].accuracy for column in columns] for row in rows])
    figure, axes = pyplot.subplots(
        figsize=(1.6 + 1.15 * len(columns), 1.9 + 0.72 * len(rows)), layout="constrained"
    )
    image = axes.imshow(100 * accuracy, cmap=COLOURS, vmin=0, vmax=100, aspect="auto")
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            cell = cells[row, column]
            low, high = (100 * edge for edge in cell.interval)
            ink = _ink(image.cmap(accuracy[r, c]))
            axes.text(c, r - 0.12, shown(cell), ha="center", va="center", color=ink, size=12)
            axes.text(c, r + 0.25, f"{low:.0f}-{high:.0f}", ha="center", va="center", color=ink, size=8)
            if row == column:
                axes.add_patch(Rectangle((c - 0.48, r - 0.48), 0.96, 0.96, fill=False, edgecolor=ink, linewidth=2))
    axes.set_xticks(range(len(columns)), [_label(name) for name in columns])
    axes.set_yticks(range(len(rows)), ["start model" if name == BASE else _label(name) for name in rows])
    axes.axhline(0.5, color="white", linewidth=6)
    axes.set_xlabel("tested on")
    axes.set_ylabel("trained on")
    axes.tick_params(length=0)
    axes.set_title(f"{matrix.method}, {matrix.mode.replace('_', '-')}: accuracy in %, 95 % interval")
    figure.colorbar(image, ax=axes, label="accuracy, %", fraction=0.03)
    figure.supxlabel(f"Not shown to be better {MARKS}", size=8, x=0.99, ha="right")
    figure.savefig(folder / f"{matrix.name}.png", dpi=150)
    figure.savefig(folder / f"{matrix.name}.svg", metadata={"Date": None})
    pyplot.close(figure)


def _label(name: str) -> str:
    return _SHORT.get(name, name).replace(" ", "\n", 1)


def _ink(colour: tuple[float, ...]) -> str:
    """Return black or white, whichever is easier to read on a colour, by its relative luminance (WCAG 2)."""
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour))
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "white"
