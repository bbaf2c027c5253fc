"""The bucket as a Dagster resource: dagster-aws's `S3Resource` with the settings that Cloudflare R2 needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from dagster import InitResourceContext
from dagster_aws.s3 import S3Resource
from pydantic import Field

from audio_assets import settings
from audio_assets.errors import SettingsError
from audio_assets.ingest.remote_errors import settings_error, translated
from audio_assets.resources.run_config import refuse_in_run_config
from audio_assets.resources.travelling import Travelling
from audio_assets.storage.bucket_client import without_redirects

_NOT_OF_A_RUN = {
    "endpoint_url": "R2_ENDPOINT_URL",
    "account_id": "R2_ACCOUNT_ID",
    "aws_access_key_id": "R2_ACCESS_KEY_ID",
    "aws_secret_access_key": "R2_SECRET_ACCESS_KEY",
    "aws_session_token": "R2_SECRET_ACCESS_KEY",
    "profile_name": "AWS_PROFILE",
    "use_ssl": "R2_ENDPOINT_URL",
    "verify": "R2_ENDPOINT_URL",
}


@cache
def _service_models() -> Any:
    """What botocore knows of services, for all clients: reading it is most of what making a client takes."""
    import botocore.session

    return botocore.session.Session().get_component("data_loader")


class R2Resource(Travelling, S3Resource):
    """Gives a boto3 client for an R2 bucket, or for any other S3 server.

    A field that is left out is read from the environment when a run needs it, so that definitions load without any.

    For example:

        Definitions(assets=[...], resources={"r2": R2Resource()})
    """

    bucket: str | None = Field(default=None, description="Name of the bucket. By default R2_BUCKET.")
    account_id: str | None = Field(
        default=None,
        description="Cloudflare account id, from which the endpoint follows. By default R2_ACCOUNT_ID.",
    )
    endpoint_url: str | None = Field(
        default=None,
        description="Endpoint to use instead of the account's: EU or FedRAMP jurisdiction, or any S3 server. "
        "By default R2_ENDPOINT_URL.",
    )
    aws_access_key_id: str | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="Access key of an R2 API token. By default R2_ACCESS_KEY_ID.",
    )
    aws_secret_access_key: str | None = Field(
        default=None, repr=False, exclude=True, description="Secret of that token. By default R2_SECRET_ACCESS_KEY."
    )
    aws_session_token: str | None = Field(
        default=None, repr=False, exclude=True, description="Session token, for temporary credentials."
    )
    region_name: str | None = Field(default="auto", description="R2 has one region, `auto`.")
    max_attempts: int = Field(
        default=3, description="Tries of one request, the first included. Downloads have a retry layer of their own."
    )
    max_pool_connections: int = Field(
        default=64, description="Connections kept open. Never fewer than AUDIO_ASSETS_DOWNLOADS."
    )
    connect_timeout_s: float = Field(default=10.0, description="Seconds to wait for a connection.")
    read_timeout_s: float = Field(default=60.0, description="Seconds to wait for each read.")

    def setup_for_execution(self, context: InitResourceContext) -> None:
        """Refuse a run that would send the credentials elsewhere.

        Raises:
            SettingsError: the run's configuration says where the bucket is, or how it is to be reached.
        """
        refuse_in_run_config(context, _NOT_OF_A_RUN, type(self))

    def get_object_to_set_on_execution_context(self) -> Any:
        """The resource itself: a client would need settings that a run without ingestion has not got."""
        return self

    def bucket_name(self) -> str:
        """Name of the bucket.

        Raises:
            SettingsError: neither the field nor R2_BUCKET is set.
        """
        return settings.require(self.bucket or settings.load().r2_bucket, "R2_BUCKET", "the name of the bucket to read")

    def endpoint(self) -> str:
        """The endpoint, without a trailing slash or the bucket's name.

        Raises:
            SettingsError: no endpoint and no account id is set, or the endpoint is no https address (http is for this
                machine).
        """
        # What is given in code goes before the environment, whichever of the two it is.
        return settings.r2_endpoint(self.endpoint_url, self.account_id, self.bucket)

    def get_client(self) -> Any:
        """A new boto3 S3 client; share it between threads.

        Raises:
            SettingsError: a setting is missing or malformed; the message names its variable.
        """
        import boto3
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        configured = settings.load()
        endpoint = self.endpoint()
        signature: dict[str, Any] = {"signature_version": UNSIGNED} if self.use_unsigned_session else {}
        credentials: dict[str, str | None] = {}
        if not self.use_unsigned_session and self.profile_name is None:
            purpose = "the access key and the secret of an R2 API token that may read the bucket"
            credentials = {
                "aws_access_key_id": settings.require(
                    self.aws_access_key_id or configured.r2_access_key_id, "R2_ACCESS_KEY_ID", purpose
                ),
                "aws_secret_access_key": settings.require(
                    self.aws_secret_access_key or configured.r2_secret_access_key, "R2_SECRET_ACCESS_KEY", purpose
                ),
                "aws_session_token": self.aws_session_token,
            }
        try:
            session = botocore.session.Session()
            session.register_component("data_loader", _service_models())
            client = boto3.session.Session(botocore_session=session, profile_name=self.profile_name).client(
                "s3",
                endpoint_url=endpoint,
                region_name=self.region_name,
                use_ssl=self.use_ssl,
                verify=self.verify,
                config=Config(
                    **signature,
                    s3={"addressing_style": "path"},
                    retries={"total_max_attempts": self.max_attempts, "mode": "standard"},
                    max_pool_connections=max(self.max_pool_connections, configured.audio_assets_downloads),
                    connect_timeout=self.connect_timeout_s,
                    read_timeout=self.read_timeout_s,
                    # R2 rejects the checksum trailers that boto3 adds since 1.36.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
                **credentials,
            )
            return without_redirects(client)
        except BotoCoreError as error:
            doomed = settings_error(error, bucket=str(self.bucket or configured.r2_bucket), endpoint=endpoint)
            raise doomed or SettingsError(f"no client for {endpoint}: {error}") from error
        except ValueError as error:
            raise SettingsError(f"R2_ENDPOINT_URL {endpoint!r} is not usable: {error}") from error

    def presigner(self, expires_s: float) -> Callable[[str], str]:
        """Makes links by which anybody can read an object for ``expires_s`` seconds, without asking the network.

        Raises:
            SettingsError: a setting is missing or malformed; the message names its variable.
        """
        client, bucket = self.get_client(), self.bucket_name()

        def link(key: str) -> str:
            url: str = client.generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=round(expires_s)
            )
            return url

        return link

    def check(self) -> None:
        """List one object, to learn whether the bucket can be read.

        Raises:
            SettingsError: a setting is missing or wrong; the message names its variable.
            AudioAssetsError: the server failed in another way.
        """
        bucket = self.bucket_name()
        client = self.get_client()
        with translated(client, bucket, "list the bucket"):
            client.list_objects_v2(Bucket=bucket, MaxKeys=1)
