from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from audio_assets.demo_server import WeedServer
from audio_assets.errors import SettingsError
from audio_assets.resources.r2 import R2Resource

SECRETS = {"aws_access_key_id": "AKIDSECRET", "aws_secret_access_key": "SAKSECRET", "aws_session_token": "TOKSECRET"}


@pytest.fixture
def r2_settings(weed: WeedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[WeedServer]:
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    yield weed


@pytest.fixture
def no_retries(r2_settings: WeedServer) -> dict[str, Any]:
    return {"max_attempts": 1, "connect_timeout_s": 2.0}


def test_everything_comes_from_the_environment_when_it_is_needed(r2_settings: WeedServer) -> None:
    resource = R2Resource()
    resource.check()
    client = resource.get_client()
    client.put_object(Bucket=resource.bucket_name(), Key="r2-resource/a.txt", Body=b"x", Metadata={"a": "b"})
    assert client.get_object(Bucket=resource.bucket_name(), Key="r2-resource/a.txt")["Body"].read() == b"x"
    client.delete_object(Bucket=resource.bucket_name(), Key="r2-resource/a.txt")
    client.close()


@pytest.mark.parametrize("name", ["R2_BUCKET", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"])
@pytest.mark.parametrize("empty", [True, False])
def test_a_missing_setting_is_named(
    name: str, empty: bool, r2_settings: WeedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if empty:
        monkeypatch.setenv(name, "")
    else:
        monkeypatch.delenv(name)
    with pytest.raises(SettingsError, match=f"{name} is not set"):
        R2Resource().check()


def test_a_missing_endpoint_names_both_ways_to_set_it(r2_settings: WeedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("R2_ENDPOINT_URL")
    with pytest.raises(SettingsError, match=r"R2_ACCOUNT_ID is not set.*R2_ENDPOINT_URL"):
        R2Resource().check()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bucket": "not-there"}, "R2_BUCKET 'not-there' does not exist at http://127.0.0.1"),
        ({"bucket": "No Such Name!"}, "R2_BUCKET 'No Such Name!' is not a valid bucket name"),
        ({"aws_access_key_id": "wrong"}, "R2_ACCESS_KEY_ID is not known"),
        ({"aws_secret_access_key": "wrong"}, "R2_SECRET_ACCESS_KEY does not belong to R2_ACCESS_KEY_ID"),
        ({"endpoint_url": "http://127.0.0.1:9"}, "R2_ENDPOINT_URL http://127.0.0.1:9 cannot be reached"),
        ({"endpoint_url": "127.0.0.1:9"}, "R2_ENDPOINT_URL '127.0.0.1:9' is not an address"),
        ({"endpoint_url": "http://127.0.0.1:9/else"}, "R2_ENDPOINT_URL .* has a path"),
        ({"profile_name": "no-such-profile"}, "AWS_PROFILE names no profile"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, str], message: str, no_retries: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=message) as raised:
        R2Resource(**wrong, **no_retries).check()
    assert raised.value.exit_code == 4
    assert "\n" not in str(raised.value)
    assert all(f"'{value}'" not in str(raised.value) for name, value in wrong.items() if "secret" in name)


def test_the_endpoint_follows_from_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    assert R2Resource(account_id="abc").endpoint() == "https://abc.r2.cloudflarestorage.com"
    monkeypatch.setenv("R2_ACCOUNT_ID", "fromenv")
    assert R2Resource().endpoint() == "https://fromenv.r2.cloudflarestorage.com"
    monkeypatch.setenv("R2_ENDPOINT_URL", "https://abc.eu.r2.cloudflarestorage.com/")
    assert R2Resource().endpoint() == "https://abc.eu.r2.cloudflarestorage.com"
    assert R2Resource(account_id="abc").endpoint() == "https://abc.r2.cloudflarestorage.com"


def test_the_dashboards_address_with_the_bucket_at_its_end_is_understood() -> None:
    resource = R2Resource(bucket="calls", endpoint_url="https://abc.r2.cloudflarestorage.com/calls")
    assert resource.endpoint() == "https://abc.r2.cloudflarestorage.com"


def test_the_client_is_set_up_for_r2() -> None:
    client = R2Resource(account_id="abc", aws_access_key_id="a", aws_secret_access_key="b").get_client()
    config = client.meta.config
    assert config.request_checksum_calculation == "when_required"
    assert config.response_checksum_validation == "when_required"
    assert config.s3["addressing_style"] == "path"
    assert config.max_pool_connections >= 32
    assert config.retries["total_max_attempts"] == 3
    assert (config.connect_timeout, config.read_timeout) == (10, 60)
    assert client.meta.region_name == "auto"
    client.close()


def test_secrets_are_in_no_text_of_the_resource() -> None:
    resource = R2Resource(bucket="b", **SECRETS)
    texts = [
        repr(resource),
        str(resource),
        f"{resource}",
        repr([resource]),
        str(resource.model_dump()),
        resource.model_dump_json(),
    ]
    for text in texts:
        assert "bucket" in text
        assert all(secret not in text for secret in SECRETS.values())


def test_secrets_given_through_dagster_reach_the_client_and_no_log(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_SECRET", "SAKSECRET")
    used: list[str] = []

    @dg.asset
    def uses_r2(r2: R2Resource) -> None:
        client = r2.get_client()
        used.append(client._request_signer._credentials.secret_key)
        client.close()
        raise RuntimeError(f"failed with {r2!r}")

    resource = R2Resource(
        account_id="abc", aws_access_key_id="AKIDSECRET", aws_secret_access_key=dg.EnvVar("MY_SECRET")
    )
    with dg.instance_for_test() as instance:
        result = dg.materialize([uses_r2], resources={"r2": resource}, raise_on_error=False, instance=instance)
        events = " ".join(str(record) for record in instance.all_logs(result.run_id))
        run = str(instance.get_run_by_id(result.run_id))
    assert used == ["SAKSECRET"]
    assert not result.success
    assert "failed with R2Resource" in events
    printed = "".join(capfd.readouterr())
    for text in (events, run, printed):
        assert "SAKSECRET" not in text
        assert "AKIDSECRET" not in text


def test_a_run_that_does_not_use_the_bucket_needs_no_settings() -> None:
    seen: list[str] = []

    @dg.asset
    def leaves_r2_alone(r2: R2Resource) -> None:
        seen.append(type(r2).__name__)

    assert dg.materialize([leaves_r2_alone], resources={"r2": R2Resource()}).success
    assert seen == ["R2Resource"]
