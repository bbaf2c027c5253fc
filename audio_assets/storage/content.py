"""What rows say, as one short text: the data version of a table."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.compute as pc


def content_version(data: pa.Table, columns: list[str]) -> str:
    """SHA-256 over the given columns, row by row, hexadecimal; the same for the same values in the same order.

    Columns are of strings, numbers or times. How the table is chunked or stored makes no difference.
    """
    text = pa.large_string()
    digest = hashlib.sha256("\0".join(columns).encode())
    for name in columns:
        values = data.column(name).cast(text)
        # A null, an empty text and a longer neighbour must not look alike: the length goes before each value.
        sizes = pc.fill_null(pc.binary_length(values), -1).cast(text)
        lines = pc.binary_join_element_wise(sizes, pc.fill_null(values, ""), pa.scalar(":", text))
        digest.update("".join(lines.to_pylist()).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
