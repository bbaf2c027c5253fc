"""Which errors of the bucket doom every file, and what a user should do about each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from audio_assets.errors import AudioAssetsError, SettingsError

_WRONG_KEY = frozenset({"InvalidAccessKeyId", "InvalidArgument", "Unauthorized", "AuthorizationHeaderMalformed"})
_ELSEWHERE = frozenset({"PermanentRedirect", "IllegalLocationConstraintException"})
_NO_BUCKET = frozenset({"NoSuchBucket", "InvalidBucketName"})


def settings_error(error: BaseException, *, bucket: str, endpoint: str) -> SettingsError | None:
    """The `SettingsError` that ``error`` of botocore amounts to, or None when it does not doom every file.

    Connection errors count: call this only once retries are over.
    """
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        return _from_response(error, bucket, endpoint)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return SettingsError(
            "R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY are not both set: the bucket cannot be read. "
            "Set them in the environment or in .env"
        )
    if isinstance(error, boto.ProfileNotFound):
        return SettingsError(f"AWS_PROFILE names no profile of this machine ({error}); unset it or correct it")
    if isinstance(error, boto.ParamValidationError) and "bucket" in str(error).lower():
        return SettingsError(f"R2_BUCKET {bucket!r} is not a valid bucket name; correct it")
    if isinstance(error, boto.SSLError):
        return SettingsError(
            f"R2_ENDPOINT_URL {endpoint}: no secure connection; is it https where it should be? ({short(error)})"
        )
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        return SettingsError(
            f"R2_ENDPOINT_URL {endpoint} cannot be reached ({short(error)}); "
            "check it, R2_ACCOUNT_ID and the network connection"
        )
    if isinstance(error, boto.InvalidEndpointDiscoveryConfigurationError | boto.EndpointProviderError):
        return SettingsError(f"R2_ENDPOINT_URL {endpoint} is not an endpoint ({short(error)}); correct it")
    # botocore's parser lives outside its tree of exceptions.
    if type(error).__name__ == "ResponseParserError":
        return SettingsError(f"R2_ENDPOINT_URL {endpoint} does not answer like an S3 server; check it")
    return None


def status_of(error: BaseException) -> int:
    """HTTP status of a botocore ``ClientError``; 0 for anything else."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return 0
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextmanager
def translated(client: Any, bucket: str, purpose: str) -> Iterator[None]:
    """Turn botocore's errors inside the block into ours.

    Raises:
        SettingsError: the bucket, the credentials or the endpoint are wrong.
        AudioAssetsError: anything else that botocore raised; the message says what was being done.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except (BotoCoreError, ClientError, ResponseParserError) as error:
        endpoint = str(client.meta.endpoint_url)
        doomed = settings_error(error, bucket=bucket, endpoint=endpoint)
        if doomed is not None:
            raise doomed from error
        raise AudioAssetsError(f"could not {purpose} {bucket!r} at {endpoint}: {short(error)}; try again") from error


def _from_response(error: Any, bucket: str, endpoint: str) -> SettingsError | None:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = status_of(error)
    if code in _NO_BUCKET or (status == 404 and code == "404" and error.operation_name == "HeadBucket"):
        return SettingsError(f"R2_BUCKET {bucket!r} does not exist at {endpoint}; correct it or create the bucket")
    if code == "SignatureDoesNotMatch":
        return SettingsError(
            f"R2_SECRET_ACCESS_KEY does not belong to R2_ACCESS_KEY_ID (refused by {endpoint}); "
            "set the pair of one token"
        )
    if code == "RequestTimeTooSkewed":
        return SettingsError(f"the clock of this machine is too far from that of {endpoint}; set it right")
    if (
        code in _ELSEWHERE
        or (code == "AuthorizationHeaderMalformed" and "region" in str(error))
        # Of one object it may be a whim of the server.
        or (error.operation_name == "ListObjectsV2" and 300 <= status < 400)
    ):
        told = " ".join(str(error.response.get("Error", {}).get("Message", "")).split())[:120]
        return SettingsError(
            f"R2_ENDPOINT_URL {endpoint} is not where bucket {bucket!r} is (HTTP {status} {code}: {told}); set it to "
            "the endpoint of the bucket's own region or jurisdiction"
        )
    if code in _WRONG_KEY and status in (400, 401, 403):
        if code == "InvalidArgument" and "access key" not in str(error).lower():
            return None
        return SettingsError(
            f"R2_ACCESS_KEY_ID is not known to {endpoint} (HTTP {status} {code}); set the access key of an R2 API token"
        )
    if status in (401, 403):
        return SettingsError(
            f"R2_ACCESS_KEY_ID may not read bucket {bucket!r} at {endpoint} (HTTP {status} {code}); "
            "give its token read permission on R2_BUCKET, and check R2_SECRET_ACCESS_KEY"
        )
    # An S3 server names its errors. A bare number is botocore's reading of an answer that is no S3 server's; 200 with
    # a page of HTML reads as 500.
    if error.operation_name == "ListObjectsV2" and code in ("400", "404", "405", "500"):
        return SettingsError(f"R2_ENDPOINT_URL {endpoint} does not answer like an S3 server (HTTP {code}); check it")
    return None


def short(error: BaseException) -> str:
    """The error on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
