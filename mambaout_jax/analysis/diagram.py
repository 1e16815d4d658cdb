# SPDX-License-Identifier: Apache-2.0
"""The two blocks that this project compares, side by side: Gated CNN, and Mamba with its SSM.

Paper: MambaOut (arXiv 2405.07992), Figure 1 and Eq. 8, 10 and 11; the picture is our own.
"""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

from mambaout_jax.analysis.figures import COLORS, INK, new_figure, save_figure

_WIDTH, _HEIGHT = 760, 640  # pixels
_BOX = (1.5, 0.62)  # width and height, in the diagram's own units
_LEFT, _MIDDLE, _RIGHT = -1.1, 0.0, 1.1  # columns of a block: token mixer, trunk, gate
_SKIP = 2.35  # where the residual connection runs
_RADIUS = 0.26
_PLAIN, _CONV, _SSM = "#F2F2F2", COLORS[5], COLORS[1]


class _Box(NamedTuple):
    text: str
    x: float
    y: float
    color: str = _PLAIN


_SHARED = (
    _Box("Norm", _MIDDLE, 1.1),
    _Box("Linear", _LEFT, 2.2),
    _Box("Linear", _RIGHT, 2.2),
    _Box("Conv", _LEFT, 3.3, _CONV),
    _Box("σ", _RIGHT, 3.3),
    _Box("Linear", _MIDDLE, 7.5),
)
_ONLY_MAMBA = (_Box("σ", _LEFT, 4.4), _Box("SSM", _LEFT, 5.5, _SSM))
_PRODUCT, _SUM, _OUT = 6.6, 8.5, 9.4  # heights


def draw_blocks(path: Path | str) -> None:
    """Draws the Gated CNN block and the Mamba block as a PNG file.

    Args:
        path: the PNG file to write.
    """
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-3.2, 9.6), ylim=(-1.2, 10.4))
    axes.set_axis_off()
    _draw_block(axes, 0.0, "Gated CNN block", "token mixer: Conv(Z)", ())
    _draw_block(axes, 6.0, "Mamba block", "token mixer: SSM(σ(Conv(Z)))", _ONLY_MAMBA)
    save_figure(figure, path)


def _draw_block(axes: Any, left: float, title: str, mixer: str, extra: tuple[_Box, ...]) -> None:
    boxes = (*_SHARED, *extra)
    for box in boxes:
        _draw_box(axes, left, box)
    for sign, y in (("×", _PRODUCT), ("+", _SUM)):
        _draw_sign(axes, left + _MIDDLE, y, sign)
    half = _BOX[1] / 2
    top_of_mixer = max(box.y for box in boxes if box.x == _LEFT) + half
    stack = sorted(box.y for box in boxes if box.x == _LEFT)
    lines = [
        ((_MIDDLE, 0.0), (_MIDDLE, 1.1 - half)),
        ((_MIDDLE, 1.1 + half), (_LEFT, 2.2 - half)),
        ((_MIDDLE, 1.1 + half), (_RIGHT, 2.2 - half)),
        *(((_LEFT, low + half), (_LEFT, high - half)) for low, high in itertools.pairwise(stack)),
        ((_RIGHT, 2.2 + half), (_RIGHT, 3.3 - half)),
        ((_MIDDLE, _PRODUCT + _RADIUS), (_MIDDLE, 7.5 - half)),
        ((_MIDDLE, 7.5 + half), (_MIDDLE, _SUM - _RADIUS)),
        ((_MIDDLE, _SUM + _RADIUS), (_MIDDLE, _OUT)),
    ]
    for start, end in lines:
        _draw_arrow(axes, left, (start, end))
    _draw_arrow(axes, left, ((_LEFT, top_of_mixer), (_LEFT, _PRODUCT), (-_RADIUS, _PRODUCT)))
    _draw_arrow(axes, left, ((_RIGHT, 3.3 + half), (_RIGHT, _PRODUCT), (_RADIUS, _PRODUCT)))
    skip = ((_MIDDLE, 0.4), (_SKIP, 0.4), (_SKIP, _SUM), (_RADIUS, _SUM))
    _draw_arrow(axes, left, skip)
    axes.text(left, 9.9, title, ha="center", va="center", fontsize=11, weight="bold", color=INK)
    axes.text(left, -0.35, "X", ha="center", va="center", fontsize=9, color=INK)
    axes.text(left, -0.85, mixer, ha="center", va="center", fontsize=9, color=INK)


def _draw_box(axes: Any, left: float, box: _Box) -> None:
    from matplotlib.patches import FancyBboxPatch

    width, height = _BOX
    corner = (left + box.x - width / 2, box.y - height / 2)
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=box.color, edgecolor=INK)
    )
    ink = "white" if box.color == _SSM else INK
    axes.text(left + box.x, box.y, box.text, ha="center", va="center", fontsize=10, color=ink)


def _draw_sign(axes: Any, x: float, y: float, sign: str) -> None:
    from matplotlib.patches import Ellipse

    axes.add_patch(Ellipse((x, y), 2 * _RADIUS, 2 * _RADIUS, facecolor="white", edgecolor=INK))
    axes.text(x, y, sign, ha="center", va="center", fontsize=11, color=INK)


def _draw_arrow(axes: Any, left: float, points: tuple[tuple[float, float], ...]) -> None:
    """Draws a line through points in a block's coordinates, with an arrowhead at the last."""
    shifted = [(left + x, y) for x, y in points]
    if len(shifted) > 2:
        axes.plot(*zip(*shifted[:-1], strict=True), color=INK, linewidth=1, solid_capstyle="round")
    style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", shifted[-1], shifted[-2], arrowprops=style)
