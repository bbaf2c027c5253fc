"""Settings from the environment and a ``.env`` file, and where everything lies under ``AUDIO_ASSETS_HOME``.

Reading settings never fails and never touches the network. A setting that a run needs and does not find is reported
by `require`, which names the variable.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from audio_assets.errors import SettingsError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Settings(BaseSettings):
    """Every environment variable the package reads. ``.env.example`` and the README list the same names."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", env_ignore_empty=True, populate_by_name=True)

    r2_bucket: str | None = Field(None, description="name of the bucket")
    r2_account_id: str | None = Field(None, description="Cloudflare account id; the endpoint follows from it")
    r2_endpoint_url: str | None = Field(
        None, description="full endpoint, instead of the account id: EU jurisdiction, or any S3 server"
    )
    r2_access_key_id: str | None = Field(None, description="access key of an R2 API token")
    r2_secret_access_key: SecretStr | None = Field(None, description="secret of that token")
    r2_events_queue_id: str | None = Field(
        None, description="id of the Cloudflare Queue that gets the bucket's event notifications"
    )
    cloudflare_api_token: SecretStr | None = Field(None, description="Cloudflare API token that may edit that queue")
    cloudflare_base_url: str = Field(
        "https://api.cloudflare.com/client/v4", description="address of Cloudflare's API; https, unless on loopback"
    )
    openai_api_key: SecretStr | None = Field(
        None, description="key for OpenAI's API; makes `openai` the default engine"
    )
    openai_base_url: str | None = Field(None, description="another OpenAI-compatible endpoint")
    openai_price_usd_per_minute: float | None = Field(
        None, ge=0, description="what that endpoint charges for a minute; by default OpenAI's price of the model"
    )
    openai_requests_per_minute: float | None = Field(None, gt=0, description="most requests a minute")
    openai_audio_s_per_minute: float | None = Field(None, gt=0, description="most seconds of audio sent a minute")
    whisper_engine: Literal["local", "openai"] | None = Field(
        None, description="`local` or `openai`; by default `openai` when a key is set, else `local`"
    )
    whisper_model: str | None = Field(
        None, description="model name, or a directory of CTranslate2 weights for the local engine"
    )
    audio_assets_include: str = Field(
        "", description="globs of the keys to take in, separated by commas; by default every audio file"
    )
    audio_assets_exclude: str = Field("", description="globs of the keys to leave out, separated by commas")
    audio_assets_downloads: int = Field(64, ge=1, description="downloads at once, of one run")
    audio_assets_max_duration_s: float = Field(
        12 * 3600.0, gt=0, description="longest recording that is transcribed, in seconds"
    )
    audio_assets_max_bytes: int = Field(
        2 << 30, gt=0, description="largest object that is fetched and transcribed, in bytes"
    )
    audio_assets_max_decode_s: float = Field(1800.0, gt=0, description="most seconds that decoding one file may take")
    audio_assets_stop_words: str = Field(
        "", description="words to count as stop words, in every language, separated by commas"
    )
    audio_assets_normalizers: str = Field(
        "", description="what to do to words beyond NFKC and lower case, separated by commas"
    )
    audio_assets_bpe_file: str | None = Field(
        None, description="a tokenizer.json whose tokens are counted too, in `bpe_count`"
    )
    audio_assets_enrich: str = Field(
        "", description="what to add to the tokens, separated by commas: `entities`, `sentiment`, `pii`"
    )
    audio_assets_entity_model: str | None = Field(
        None, description="installed spaCy model that names people and places; by default any of the language"
    )
    audio_assets_home: str = Field(
        "data", description="where everything is kept: a directory, or s3://bucket/folder or r2://bucket/folder"
    )
    audio_assets_scratch: Path | None = Field(
        None, description="where a machine keeps its copies while AUDIO_ASSETS_HOME is a bucket"
    )
    audio_assets_mapper: Literal["local", "ray"] = Field(
        "local", description="`local` or `ray`: who does the work on the files of a partition"
    )
    ray_address: str | None = Field(
        None, description="`host:port` of the Ray cluster's head node; `auto` for the cluster of this machine"
    )
    audio_assets_ray_cpus: float = Field(1.0, gt=0, description="cores of one worker on the Ray cluster")
    audio_assets_ray_gpus: float = Field(
        0.0, ge=0, description="GPUs of one worker that transcribes; half a GPU lets two workers share it"
    )
    audio_assets_ray_workers: int | None = Field(
        None, ge=1, description="most workers of one run on the Ray cluster; by default as many as fit"
    )
    audio_assets_ray_in_flight: int = Field(
        16, ge=1, description="files that one worker has at a time, at most; they are done again when it is lost"
    )
    audio_assets_max_disk: str | None = Field(
        None, description="what the mirror may hold, such as 50GB; by default no limit"
    )
    audio_assets_prefix_depth: int = Field(1, ge=0, description="folders of a key that make its partition")
    audio_assets_report_link_hours: float = Field(
        0.0,
        ge=0,
        le=168,
        description="hours for which the report's players read from the bucket, by presigned links; 0 for the mirror",
    )
    audio_assets_plot_theme: Literal["light", "dark"] = Field(
        "light", description="`light` or `dark`: the pictures in the Dagster UI; the report has both"
    )
    audio_assets_sensors: Literal["on", "off"] = Field(
        "off", description="`on` starts the sensors by themselves, in production; `off` leaves that to the UI"
    )
    audio_assets_listing_interval_s: int = Field(
        60, ge=30, description="seconds between two listings of the bucket by `new_r2_objects_sensor`"
    )
    audio_assets_metrics: str | None = Field(
        None, description="address at which a run shows Prometheus its figures, such as 127.0.0.1:9464; by default none"
    )
    audio_assets_webhook_url: SecretStr | None = Field(
        None,
        description="where `run_failure_sensor` posts a line of JSON for each failed run; https, unless on loopback",
    )


@dataclass(frozen=True)
class Home:
    """The directories under ``AUDIO_ASSETS_HOME``.

    With ``shared``, the URL of a folder of a bucket, partition files, cache and what is published lie there, and
    ``root`` holds this machine's copies: whatever is lost with it can be fetched or made again.
    """

    root: Path
    shared: str | None = None

    @property
    def audio(self) -> Path:
        """The mirror of the bucket's tree."""
        return self.root / "audio"

    @property
    def cache(self) -> Path:
        """Transcription results by content."""
        return self.root / "cache"

    @property
    def bucket(self) -> Path:
        """The name of the bucket whose corpus this is."""
        return self.root / "bucket"

    @property
    def tables(self) -> Path:
        """Partition files: the record."""
        return self.root / "tables"

    @property
    def record(self) -> Path | str:
        """Where the partition files lie: `tables`, or the folder of that name in the bucket."""
        return self.tables if self.shared is None else below(self.shared, "tables")

    @property
    def warehouse(self) -> Path:
        """The DuckDB database that follows the record."""
        return self.root / "warehouse.duckdb"

    @property
    def exports(self) -> Path:
        """What `corpus_export` writes."""
        return self.root / "exports"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report" / "index.html"

    @property
    def dagster(self) -> Path:
        """Dagster's own state, when ``DAGSTER_HOME`` is not set."""
        return self.root / "dagster"

    @property
    def ledger(self) -> Path:
        """Journals of the requests that cost money."""
        return self.root / "ledger"

    @property
    def sensors(self) -> Path:
        """What the sensors remember from one tick to the next."""
        return self.root / "sensors"

    @property
    def locks(self) -> Path:
        """Lock files of runs."""
        return self.root / "locks"

    @property
    def settled(self) -> Path:
        """Notes of prefixes for which a run has nothing to do."""
        return self.root / "settled"

    @property
    def crash_marks(self) -> Path:
        """Which files are being decoded, and which were when a process died."""
        return self.locks / "decoding"


def home(settings: Settings | None = None) -> Home:
    """The home that the environment asks for, as an absolute path."""
    return home_at((settings or load()).audio_assets_home)


def home_at(place: str | Path) -> Home:
    """The home at a directory, or in a bucket with copies in ``AUDIO_ASSETS_SCRATCH``.

    Raises:
        SettingsError: a path begins with the name of a user that there is not.
    """
    text = str(place)
    if "://" not in text:
        return Home(expanded(text, "AUDIO_ASSETS_HOME").absolute())
    scratch = expanded(load().audio_assets_scratch or "~/.cache/audio_assets", "AUDIO_ASSETS_SCRATCH")
    try:
        parts = urlsplit(text)
        told = f"{parts.hostname}/{parts.path}?{parts.query}"
    except ValueError:
        # Whoever opens the bucket says what is wrong.
        told = text
    # One directory for each: copies of two buckets must not mix. The URL may hold a secret, so its name is a hash.
    name = hashlib.sha256(told.encode()).hexdigest()[:16]
    return Home(scratch.absolute() / name, text)


def expanded(path: str | Path, variable: str) -> Path:
    """``path``, the value of ``variable``, with a leading ``~`` or ``~user`` written out.

    Raises:
        SettingsError: there is no such user, or nobody knows where its home directory is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise SettingsError(
            f"{variable} {str(path)!r}: nobody knows where {Path(path).parts[0]} is; write the path in full"
        ) from None


def below(url: str, folder: str) -> str:
    """``folder`` below a URL, whose options stay behind it.

    >>> below("s3://bucket/corpus?region=eu", "tables")
    's3://bucket/corpus/tables?region=eu'
    """
    path, mark, query = url.partition("?")
    return f"{path.rstrip('/')}/{folder}{mark}{query}"


def load() -> Settings:
    """The environment and ``.env`` as they are now. What is given is shared: not to be changed.

    Raises:
        SettingsError: a variable is set to something it cannot be, or ``.env`` cannot be read; the message names it.
    """
    try:
        file = Path(".env").stat()
        written = (file.st_ino, file.st_size, file.st_mtime_ns)
    except OSError:
        written = None
    # A run asks hundreds of times, and reading costs 8 ms.
    return _load(os.getcwd(), written, tuple(os.environ.items()))  # noqa: PTH109


@lru_cache(maxsize=1)
def _load(directory: str, written: object, environment: tuple[tuple[str, str], ...]) -> Settings:
    from pydantic import ValidationError

    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper()
        raise SettingsError(
            f"{name}: {first['msg']} (got {first['input']!r}); correct it in the environment or .env"
        ) from None
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{Path(directory, '.env')} is not UTF-8: byte {error.start + 1} is 0x{error.object[error.start]:02x}; "
            "save it as UTF-8"
        ) from None
    except OSError as error:
        raise SettingsError(
            f"{Path(directory, '.env')} cannot be read ({error.strerror}); correct its permissions"
        ) from None


def listed(value: str) -> list[str]:
    """The parts of a setting that lists things, separated by commas.

    >>> listed("um, uh,,er ")
    ['um', 'uh', 'er']
    """
    return [part.strip() for part in value.split(",") if part.strip()]


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def byte_count(text: str) -> int:
    """A number of bytes as people write it.

    >>> byte_count("50GB"), byte_count("1.5 MiB"), byte_count("700")
    (50000000000, 1572864, 700)

    Raises:
        ValueError: it is not one.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Z]*)", text.strip().upper())
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write it like 50GB, 500MB or 1.5GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def max_disk_bytes() -> int | None:
    """Bytes that the mirror may hold; None for no limit.

    Raises:
        SettingsError: the setting is not a size.
    """
    told = load().audio_assets_max_disk
    try:
        return None if told is None else byte_count(told)
    except ValueError as error:
        raise SettingsError(f"AUDIO_ASSETS_MAX_DISK {error}; correct it in the environment or .env") from None


def sensors_on() -> bool:
    """Whether the sensors start by themselves. A wrong setting means no; a run names it."""
    try:
        return load().audio_assets_sensors == "on"
    except SettingsError:
        return False


def listing_interval_s() -> int:
    """Seconds between two listings of the bucket. A wrong setting means the default; a run names it."""
    try:
        return load().audio_assets_listing_interval_s
    except SettingsError:
        return int(Settings.model_fields["audio_assets_listing_interval_s"].default)


def secure_url(url: str, variable: str) -> str:
    """``url`` without a trailing slash: https, or http to this machine.

    Raises:
        SettingsError: it is something else; the message leaves out the address, which may hold a secret.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if not parts.hostname or port == 0 or parts.username is not None:
        raise SettingsError(f"{variable} is not an address; it looks like https://example.com/path")
    require_secure(url, variable)
    return url.strip().rstrip("/")


def require_secure(url: str, variable: str) -> None:
    """Make sure that an address with a host is https, or http to this machine, and holds no password.

    Raises:
        SettingsError: it is not; the message leaves out the address, which may hold a secret.
    """
    parts = urlsplit(url.strip())
    if parts.username is not None:
        raise SettingsError(f"{variable} has a user or a password in it; keys have variables of their own")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise SettingsError(f"{variable} is not https; plain http is for this machine alone (127.0.0.1)")


def r2_endpoint(url: str | None = None, account: str | None = None, bucket: str | None = None) -> str:
    """The endpoint of R2, without a trailing slash or the name of the bucket of recordings.

    What is given goes before the environment, an address before an account.

    Raises:
        SettingsError: no endpoint and no account id is set, or the endpoint is no https address (http is for this
            machine), or has a password or a path.
    """
    configured = load()
    if url is None and account is None:
        url, account = configured.r2_endpoint_url, configured.r2_account_id
    if url is None:
        account = require(account, "R2_ACCOUNT_ID", "the bucket's endpoint follows from it (or set R2_ENDPOINT_URL)")
        return f"https://{account}.r2.cloudflarestorage.com"
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        shown = "" if "@" in url else f"{url!r} "
        raise SettingsError(
            f"R2_ENDPOINT_URL {shown}is not an address; it looks like https://….r2.cloudflarestorage.com"
        )
    require_secure(url, "R2_ENDPOINT_URL")
    # Cloudflare's dashboard shows the address with the bucket at its end.
    path = parts.path.rstrip("/")
    if path and path == f"/{bucket or configured.r2_bucket}":
        path = ""
    if path:
        raise SettingsError(f"R2_ENDPOINT_URL {url!r} has a path; leave out {path!r}, and name the bucket in R2_BUCKET")
    return urlunsplit((parts.scheme, parts.netloc, "", "", ""))


def require(value: object | None, variable: str, purpose: str) -> str:
    """``value`` as text, or a `SettingsError` that names the missing ``variable`` and what it is for."""
    if value is None or value == "":
        raise SettingsError(
            f"{variable} is not set: {purpose}. Set it in the environment or in .env (see .env.example)"
        )
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
