"""Item features, such as embeddings of pictures or texts: read, matched to the catalogue row by row, reduced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError

SUFFIXES = (".npy", ".pt", ".safetensors")
DEFAULT_ID_FILE = "item_ids.txt"
LEAST_MATCHED = 0.5  # of the ids of a feature file, or of the catalogue's items where those are fewer


@dataclass(frozen=True)
class ItemFeatures:
    """One modality's features of the catalogue.

    Attributes:
        values: float32 ``[num_items + 1, dim]``; row 0 (padding) and the rows of missing items are zero.
        present: bool ``[num_items + 1]``; False for row 0 and for items without this modality.
    """

    values: NDArray[np.float32]
    present: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.present.shape != self.values.shape[:1]:
            raise ValueError(f"values {self.values.shape} and present {self.present.shape} do not match")
        if self.present[0]:
            raise ValueError("row 0 is the padding and has no features")

    @property
    def dim(self) -> int:
        """Width of a feature."""
        return int(self.values.shape[1])


def noise(rows: int, dim: int, rng: np.random.Generator) -> ItemFeatures:
    """Return features of every item that say nothing about it, to see what real ones are worth."""
    present = np.arange(rows) > 0
    drawn = rng.normal(size=(rows, dim)).astype(np.float32)
    return ItemFeatures(drawn * present[:, None], present)


def principal_components(features: ItemFeatures, dim: int) -> ItemFeatures:
    """Return the features' ``dim`` leading principal components; narrower features, and dim 0, are left as they are.

    Rows are scaled to length 1 first, so that no item counts for more than another. A component's sign, which is
    arbitrary, is chosen such that its largest weight is positive: every machine gets the same features.
    """
    if dim == 0 or features.dim <= dim:
        return features
    rows = features.values[features.present].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows -= rows.mean(axis=0)
    _, vectors = np.linalg.eigh(rows.T @ rows)  # eigenvalues ascend
    components = vectors[:, ::-1][:, :dim]
    largest = np.abs(components).argmax(axis=0)
    components = components * np.sign(components[largest, np.arange(dim)])
    values = np.zeros((len(features.values), dim), np.float32)
    values[features.present] = rows @ components
    return ItemFeatures(values, features.present)


def load_features(path: Path, item_ids: NDArray[np.str_], item_id_file: Path | None = None) -> ItemFeatures:
    """Read a feature file and put its rows in the order of the catalogue.

    Which item a row belongs to: line k of ``item_id_file`` (default: ``item_ids.txt`` beside the feature file, if there
    is one) names the item of row k. Without such a file the ids must be integers: with as many rows as the largest id
    row ``id - 1`` is item ``id``; with one more, row ``id`` is. Rows of items outside the catalogue are ignored; items
    without a row, and rows of zeros, are missing.

    Args:
        path: ``.npy``, ``.pt`` (one tensor, read without unpickling code) or ``.safetensors`` (one tensor),
            float16, float32 or float64 ``[rows, dim]``.
        item_ids: ``[num_items + 1]``, the catalogue's ids; entry 0 is the padding.
        item_id_file: one id a line.

    Raises:
        FedMoEError: the file cannot be read, has another shape or type, does not match the catalogue, or has a row
            that is not finite.
    """
    table = _read_table(path)
    id_file = find_id_file(path, item_id_file)
    if id_file is None:
        rows = _rows_by_number(path, table, item_ids)
    else:
        rows = _rows_by_id(path, len(table), item_ids, id_file)
    values = np.zeros((len(item_ids), table.shape[1]), np.float32)
    has_row = rows >= 0
    with np.errstate(over="ignore"):  # a float64 too large for float32 becomes infinite and is reported below
        values[has_row] = table[rows[has_row]]
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise FedMoEError(
            f"{path}: row {rows[bad[0]]} (item {item_ids[bad[0]]}) is not finite in float32, and so are {len(bad) - 1} "
            "other items - make the file again; a row of zeros says that an item has no feature"
        )
    return ItemFeatures(values, (values != 0).any(axis=1))


def find_id_file(path: Path, item_id_file: Path | None) -> Path | None:
    """Return the file that names the rows of feature file ``path``, if there is one."""
    beside = path.parent / DEFAULT_ID_FILE
    return item_id_file or (beside if beside.is_file() else None)


def _read_table(path: Path) -> NDArray[Any]:
    """Return the array of a feature file, ``[rows, dim]``, in the file's own float type."""
    if path.suffix not in SUFFIXES:
        raise FedMoEError(f"{path}: features are read from {', '.join(SUFFIXES)} - convert the file")
    if not path.is_file():
        raise FedMoEError(f"{path}: no such feature file - correct the path, or set it to null to run without")
    table: NDArray[Any]
    try:
        table = {".npy": _npy, ".pt": _pt, ".safetensors": _safetensors}[path.suffix](path)
    except FedMoEError:
        raise
    # The three readers raise a dozen unrelated types for damaged files; all of them mean the same to the user.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FedMoEError(f"{path}: cannot be read ({reason}) - the file is damaged or of another format") from error
    if table.dtype not in (np.float16, np.float32, np.float64):
        raise FedMoEError(f"{path}: features are {table.dtype} - save them as float16, float32 or float64")
    if table.ndim != 2 or table.shape[1] == 0:
        raise FedMoEError(f"{path}: features have shape {list(table.shape)} - it must be [items, width]")
    return table


def _npy(path: Path) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _pt(path: Path) -> Any:
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, torch.Tensor):
        raise FedMoEError(f"{path}: holds a {type(content).__name__} - save one tensor [items, width]")
    if content.dtype == torch.bfloat16:
        raise FedMoEError(f"{path}: features are bfloat16 - save them as float16, float32 or float64")
    return content.detach().numpy()


def _safetensors(path: Path) -> Any:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        if len(file.keys()) != 1:
            raise FedMoEError(f"{path}: holds {len(file.keys())} tensors - save one tensor [items, width]")
        return file.get_tensor(*file.keys())


def _rows_by_id(path: Path, count: int, item_ids: NDArray[np.str_], id_file: Path) -> NDArray[np.int64]:
    """Return ``[num_items + 1]``, the row of each item or -1, from the lines of the id file."""
    try:
        lines = id_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FedMoEError(f"{id_file}: cannot be read ({error}) - item_id_file names the rows' items") from error
    if len(lines) != count:
        raise FedMoEError(
            f"{path} has {count} rows but {id_file} has {len(lines)} lines - line k must be the id of row k"
        )
    row_of: dict[str, int] = {}
    for row, line in enumerate(lines):
        first = row_of.setdefault(line.strip(), row)
        if first != row:
            raise FedMoEError(f"{id_file}: item {line.strip()} is on line {first + 1} and line {row + 1} - keep one")
    row_of.pop("", None)
    rows = np.array([row_of.get(item, -1) for item in item_ids.tolist()], dtype=np.int64)
    found, smaller = int((rows >= 0).sum()), min(len(row_of), len(item_ids) - 1)
    if found < LEAST_MATCHED * smaller:
        raise FedMoEError(
            f"{id_file}: only {found} of its {len(row_of)} ids are among the catalogue's {len(item_ids) - 1} items - "
            "are these another data set's, or spelt otherwise?"
        )
    return rows


def _rows_by_number(path: Path, table: NDArray[Any], item_ids: NDArray[np.str_]) -> NDArray[np.int64]:
    """Return ``[num_items + 1]``, the row of each item or -1, from the ids as numbers."""
    remedy = f"put a file {DEFAULT_ID_FILE} beside it, or set item_id_file: line k holds the item id of row k"
    try:
        numbers = item_ids[1:].astype(np.int64)
    except (ValueError, OverflowError):
        raise FedMoEError(f"{path}: the item ids are not integers, so rows cannot be matched - {remedy}") from None
    count, largest, smallest = len(table), int(numbers.max()), int(numbers.min())
    if count == largest + 1 and smallest >= 0:
        if smallest > 0 and table[0].any():
            raise FedMoEError(
                f"{path} has {count} rows, one more than the largest item id, and the first is not empty: it is "
                f"unclear whether row k is of item k or k + 1 - {remedy}"
            )
        rows = numbers
    elif count == largest and smallest >= 1:
        rows = numbers - 1
    else:
        raise FedMoEError(
            f"{path} has {count} rows but the catalogue has {len(numbers)} items with ids {smallest} to {largest} "
            f"- {remedy}"
        )
    return np.concatenate([np.full(1, -1, np.int64), rows])
