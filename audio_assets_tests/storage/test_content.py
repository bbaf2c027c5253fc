"""The data version of a table: the same for the same values, and for nothing else."""

import pyarrow as pa

from audio_assets.storage.content import content_version


def version(ids: list[str | None], sizes: list[int]) -> str:
    return content_version(
        pa.table({"id": pa.array(ids, pa.string()), "size": pa.array(sizes, pa.int64())}), ["id", "size"]
    )


def test_chunks_make_no_difference() -> None:
    whole = pa.table({"id": ["a", "b"]})
    pieces = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    assert content_version(whole, ["id"]) == content_version(pieces, ["id"])


def test_every_value_makes_a_difference() -> None:
    rows: list[tuple[list[str | None], list[int]]] = [
        (["ab", "c"], [1, 2]), (["a", "bc"], [1, 2]), (["c", "ab"], [1, 2]), (["ab", "c"], [1, 3]),
        ([None, "c"], [1, 2]),
        (["", "c"], [1, 2]), (["ab"], [1]),
    ]  # fmt: skip
    assert len({version(ids, sizes) for ids, sizes in rows}) == len(rows)
