"""Where everything is kept, as a Dagster resource."""

from pathlib import Path

from dagster import ConfigurableResource
from pydantic import Field

from audio_assets import settings
from audio_assets.errors import SettingsError
from audio_assets.ingest.disk_budget import DiskBudget, index_path
from audio_assets.ingest.mirror import Mirror
from audio_assets.ingest.selection import Selection
from audio_assets.resources.travelling import Travelling
from audio_assets.speech.cache import TranscriptCache


class HomeResource(Travelling, ConfigurableResource):  # type: ignore[type-arg]
    """The directories under ``AUDIO_ASSETS_HOME`` and how keys are grouped into partitions."""

    root: str | None = Field(
        default=None, description="Directory for everything; by default AUDIO_ASSETS_HOME, else ./data."
    )
    prefix_depth: int | None = Field(
        default=None,
        description="Folders of a key that make its partition; by default AUDIO_ASSETS_PREFIX_DEPTH, else 1.",
    )

    max_disk: int | None = Field(
        default=None, description="Bytes that the mirror may hold; by default AUDIO_ASSETS_MAX_DISK, else no limit."
    )

    def paths(self) -> settings.Home:
        """The directories, absolute."""
        return settings.Home(Path(self.root).expanduser().absolute()) if self.root else settings.home()

    def depth(self) -> int:
        """Folders of a key that make its partition."""
        return settings.load().audio_assets_prefix_depth if self.prefix_depth is None else self.prefix_depth

    def selection(
        self,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        max_object_bytes: int | None = None,
    ) -> Selection:
        """Which objects count: as asked for, and by default as the environment says.

        Raises:
            SettingsError: a variable of the environment is set to something it cannot be.
        """
        found = settings.load()
        return Selection(
            tuple(settings.listed(found.audio_assets_include) if include is None else include),
            tuple(settings.listed(found.audio_assets_exclude) if exclude is None else exclude),
            found.audio_assets_max_bytes if max_object_bytes is None else max_object_bytes,
        )

    def claim(self, bucket: str) -> None:
        """Note that this home holds ``bucket``'s corpus.

        Two buckets in one home would mark each other's objects as gone and end in each other's exports.

        Raises:
            SettingsError: the home holds another bucket's corpus.
        """
        paths = self.paths()
        try:
            paths.root.mkdir(parents=True, exist_ok=True)
            with paths.bucket.open("x", encoding="utf-8") as file:
                file.write(bucket)
        except FileExistsError:
            holds = paths.bucket.read_text(encoding="utf-8")
            if holds != bucket:
                raise SettingsError(
                    f"AUDIO_ASSETS_HOME {paths.root} holds the corpus of the bucket {holds!r}, and R2_BUCKET is "
                    f"{bucket!r}; set AUDIO_ASSETS_HOME to another directory, one for each bucket"
                ) from None
        except OSError as error:
            raise SettingsError(
                f"AUDIO_ASSETS_HOME {paths.root} cannot be written ({error.strerror}); set it to a directory of yours"
            ) from None

    def mirror(self) -> Mirror:
        """The local copy of the bucket's tree."""
        return Mirror(self.paths().audio)

    def budget(self) -> DiskBudget | None:
        """What keeps the mirror within its limit; None when there is none, and never was.

        Raises:
            SettingsError: AUDIO_ASSETS_MAX_DISK is not a size.
        """
        limit = settings.max_disk_bytes() if self.max_disk is None else self.max_disk
        mirror = self.mirror()
        return None if limit is None and not index_path(mirror.root).exists() else DiskBudget(mirror, limit)

    def cache(self) -> TranscriptCache:
        """Stored transcription results."""
        return TranscriptCache(self.paths().cache)
