"""The home as a resource: what a run's configuration may say of it."""

import pydantic
import pytest

from audio_assets.resources.home import HomeResource


@pytest.mark.parametrize("field", ["prefix_depth", "max_disk"])
def test_less_than_nothing_is_refused(field: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=rf"{field}\n.*greater than or equal to 0"):
        HomeResource(**{field: -3})
    assert getattr(HomeResource(**{field: 0}), field) == 0
