"""Fashion-MNIST: 60 000 + 10 000 pieces of clothing, 1 x 28 x 28, ten classes."""

from __future__ import annotations

from pathlib import Path

from flowmaps.data.base import TensorData
from flowmaps.data.idx import find_idx, idx_data
from flowmaps.data.sets import Ask
from flowmaps.errors import DataError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def fashion_mnist(ask: Ask) -> TensorData:
    """Fashion-MNIST from `fashion-mnist:FOLDER`, or from where Debian's package puts it.

    Raises:
        DataError: If the files are not there, or damaged.

    Source:
        H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747, 2017 (MIT licence); classes: table 2.
    """
    folder = Path(ask.rest).expanduser() if ask.rest else DEBIAN
    if find_idx(folder, ask.split) is None:
        raise DataError(
            f"fashion-mnist: expected its IDX files in {folder}; got none; run 'sudo apt-get "
            "install dataset-fashion-mnist', or name their folder as fashion-mnist:FOLDER"
        )
    return idx_data(folder, name="fashion-mnist", split=ask.split, size=ask.size, classes=CLASSES)


LOADERS = {"fashion-mnist": fashion_mnist, "fashion-mnist:": fashion_mnist}
