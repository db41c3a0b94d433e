"""The report: audits, comparisons and pictures of a flow map, and the page that holds them.

Every function takes what it draws and returns a figure, an image or a value; `save_png` and `write_page` write files.
matplotlib, Pillow and rich are imported when something is drawn.
"""

from .audit import Audit, audit, audit_figure
from .compare import Row, compare, compare_figure, compare_table
from .figures import article_figures, loss_curve, tangents_and_jumps, time_and_space
from .frontier import Contest, entrants, frontier, frontier_figure, frontier_table
from .images import image_grid, ladder, trajectory_strip
from .page import Grid, Picture, Section, Sound, write_page
from .sounds import as_images
from .style import png_bytes, save_png

__all__ = [
    "Audit",
    "Contest",
    "Grid",
    "Picture",
    "Row",
    "Section",
    "Sound",
    "article_figures",
    "as_images",
    "audit",
    "audit_figure",
    "compare",
    "compare_figure",
    "compare_table",
    "entrants",
    "frontier",
    "frontier_figure",
    "frontier_table",
    "image_grid",
    "ladder",
    "loss_curve",
    "png_bytes",
    "save_png",
    "tangents_and_jumps",
    "time_and_space",
    "trajectory_strip",
    "write_page",
]
