"""The index of a split: where each example lies, in arrays that stay small for a million of them.

An example takes about 45 bytes: a tuple of Python strings and numbers would take ten times that.
"""

import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from auto_deeplab_tf.files import AnyPath, write_atomically
from auto_deeplab_tf.untrusted import read_npz


class Texts(Sequence[str]):
    """Texts as UTF-8 of one width in an array; each becomes a `str` when it is asked for.

    Args:
        encoded: bytes [n], the texts, or the different ones among them.
        codes: integers [m], the place in `encoded` of each text; None where they are the texts.
    """

    def __init__(self, encoded: np.ndarray, codes: np.ndarray | None = None):
        self._encoded = encoded
        self._codes = codes

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """Encodes texts; those that are encoded come back as they are."""
        if isinstance(texts, Texts):
            return cls(*texts._arrays)
        return cls(np.array([text.encode() for text in texts]))

    @property
    def encoded(self) -> np.ndarray:
        """Each text as UTF-8, which sorts as the texts do: bytes [n]."""
        return self._encoded if self._codes is None else self._encoded[self._codes]

    def coded(self) -> tuple[np.ndarray, np.ndarray]:
        """(different texts as bytes, ascending; int32 [n], the place of each text among them)."""
        if self._codes is not None:
            return self._encoded, self._codes
        encoded, codes = np.unique(self._encoded, return_inverse=True)
        return encoded, codes.astype(np.int32)

    @property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        return self._encoded, self._codes

    def __len__(self) -> int:
        return len(self._encoded if self._codes is None else self._codes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Texts": ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            if self._codes is None:
                return Texts(self._encoded[index])
            return Texts(self._encoded, self._codes[index])
        return self._encoded[index if self._codes is None else self._codes[index]].decode()

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3])) + (", ..." if len(self) > 3 else "")
        return f"Texts({shown})"


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Where each example of a split lies; examples in the order of their ids.

    Attributes:
        ids: image id of each example, ascending.
        groups: its city or drive.
        shards: int32 [n], the number of its file.
        offsets: int64 [n], where its record begins in the file.
        sizes: int32 [n, 2], its (height, width).
    """

    ids: Texts
    groups: Texts
    shards: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def save(self, path: AnyPath) -> None:
        """Writes the index as an .npz file."""
        group_names, group_codes = self.groups.coded()
        content = io.BytesIO()
        np.savez(
            content,
            ids=self.ids.encoded,
            group_names=group_names,
            group_codes=group_codes.astype(np.int32),
            shards=self.shards.astype(np.int32),
            offsets=self.offsets.astype(np.int64),
            sizes=self.sizes.astype(np.int32),
        )
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: AnyPath) -> "Index":
        """Reads an index that `save` wrote.

        Raises:
            ValueError: where the arrays are none of such an index, or do not fit together.
        """
        arrays = read_npz(path)
        n, groups = (len(np.atleast_1d(arrays.get(name, 0))) for name in ("ids", "group_names"))
        wanted = {
            "ids": ("S", (n,)),
            "group_names": ("S", (groups,)),
            "group_codes": (np.dtype(np.int32), (n,)),
            "shards": (np.dtype(np.int32), (n,)),
            "offsets": (np.dtype(np.int64), (n,)),
            "sizes": (np.dtype(np.int32), (n, 2)),
        }
        texts = ("ids", "group_names")
        if wanted != {
            name: (array.dtype.kind if name in texts else array.dtype, array.shape)
            for name, array in arrays.items()
        }:
            raise ValueError("the arrays have other names, kinds or shapes")
        ids, codes = arrays["ids"], arrays["group_codes"]
        low = min(codes.min(), arrays["shards"].min(), arrays["offsets"].min())
        if low < 0 or codes.max() >= groups or arrays["sizes"].min() < 1:
            raise ValueError("a number is out of its range")
        if (ids[1:] <= ids[:-1]).any():
            raise ValueError("the ids are not ascending")
        for name in texts:
            b"\n".join(arrays[name].tolist()).decode()
        return cls(
            ids=Texts(ids),
            groups=Texts(arrays["group_names"], codes),
            shards=arrays["shards"],
            offsets=arrays["offsets"],
            sizes=arrays["sizes"],
        )
