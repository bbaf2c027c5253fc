"""`tokens`: the words of each transcript of the prefix."""

from contextlib import closing

import dagster as dg
import pyarrow as pa
from pydantic import Field

from audio_assets import checks, schemas, settings
from audio_assets.assets.common import (
    OWNERS,
    WAREHOUSE,
    figures,
    partition_of,
    preview,
    readable_errors,
    table_metadata,
    table_type,
)
from audio_assets.errors import SettingsError
from audio_assets.partitions import prefix_partitions
from audio_assets.resources.duckdb_io import PartitionedDuckDBIOManager
from audio_assets.resources.mapper import MapperResource
from audio_assets.resources.stages import Tokenize
from audio_assets.summary.insight import drift
from audio_assets.text.enrich import KINDS, EnrichOptions, enrich
from audio_assets.text.normalize import NORMALIZERS
from audio_assets.text.tokenize import COLUMNS, TokenizeOptions

DRIFT = "drift_"
"""Begins the metadata keys that say what changed since the last materialization; `prefix_drift` is made of them."""


class TokensConfig(dg.Config):
    """How to split transcripts into words."""

    stop_words: list[str] = Field(
        default=[], description="Words to count as stop words, in every language; by default AUDIO_ASSETS_STOP_WORDS."
    )
    normalizers: list[str] = Field(
        default=[],
        description="What to do to words beyond NFKC and lower case; by default AUDIO_ASSETS_NORMALIZERS. "
        + "; ".join(f"{name}: {does}" for name, (does, _) in NORMALIZERS.items())
        + ".",
    )
    bpe_file: str | None = Field(
        default=None,
        description="A tokenizer.json whose tokens are counted too; by default AUDIO_ASSETS_BPE_FILE.",
    )
    enrich: list[str] = Field(
        default=[], description=f"What to add: {', '.join(KINDS)}; by default AUDIO_ASSETS_ENRICH."
    )
    entity_model: str | None = Field(
        default=None,
        description="Installed spaCy model that names people and places; by default AUDIO_ASSETS_ENTITY_MODEL.",
    )
    workers: int | None = Field(
        default=None, ge=1, description="Processes; by default one, and one per core for 50,000 transcripts and more."
    )

    def additions(self) -> EnrichOptions:
        """What to add, with what the environment says where the run says nothing.

        Raises:
            SettingsError: a variable of the environment is set to something it cannot be.
        """
        found = settings.load()
        return EnrichOptions(
            frozenset(self.enrich or settings.listed(found.audio_assets_enrich)),
            self.entity_model or found.audio_assets_entity_model,
        )

    def options(self) -> TokenizeOptions:
        """How to split, with what the environment says where the run says nothing.

        Raises:
            SettingsError: a variable of the environment is set to something it cannot be.
        """
        found = settings.load()
        return TokenizeOptions(
            extra_stop_words=frozenset(self.stop_words or settings.listed(found.audio_assets_stop_words)),
            normalizers=tuple(self.normalizers or settings.listed(found.audio_assets_normalizers)),
            bpe_file=self.bpe_file or found.audio_assets_bpe_file,
        )

    def check(self) -> None:
        """Look for what is wrong before any work is done.

        Raises:
            SettingsError: something is asked for that does not exist; the message names the field or the variable.
        """
        options = self.options()
        for field, check in (
            ("normalizers", TokenizeOptions(normalizers=options.normalizers).check),
            ("bpe_file", TokenizeOptions(bpe_file=options.bpe_file).check),
            ("enrich", self.additions().check),
        ):
            try:
                check()
            except SettingsError as error:
                name = f"{field} of the run config" if getattr(self, field) else f"AUDIO_ASSETS_{field.upper()}"
                raise SettingsError(f"{name}: {error}") from None


@dg.asset(
    partitions_def=prefix_partitions,
    ins={"transcripts": dg.AssetIn(metadata={"columns": COLUMNS})},
    group_name="text",
    owners=OWNERS,
    kinds={"spacy", "duckdb", "parquet"},
    metadata=table_metadata(schemas.TOKENS),
    dagster_type=table_type(schemas.TOKENS),
    io_manager_key=WAREHOUSE,
    check_specs=checks.specs("tokens"),
    description=schemas.TOKENS.description,
)
def tokens(
    context: dg.AssetExecutionContext,
    config: TokensConfig,
    transcripts: pa.Table,
    mapper: MapperResource,
    warehouse: dg.ResourceParam[PartitionedDuckDBIOManager],
) -> dg.MaterializeResult:
    """Split each transcript into normalized words."""
    with readable_errors():
        partition = partition_of(context)
        config.check()
        additions = config.additions()
        stage = Tokenize(config.options(), config.workers)
        with closing(mapper.map(stage, stage.items(transcripts))) as results:
            split = dict(results)
        words = pa.concat_tables([schemas.TOKENS.empty(), *(split[number] for number in sorted(split))])
        table, notes = enrich(words, additions)
        columns = ["id", "transcription", "tokens"]
        changes = drift(table, warehouse.store().read(schemas.TOKENS, [partition], columns))
    for note in notes:
        context.log.warning(note)
    return dg.MaterializeResult(
        value=table,
        check_results=checks.check_tokens(table, transcripts),
        metadata={
            "words": sum(len(chunk.flatten()) for chunk in table.column("tokens").chunks),
            **{f"{DRIFT}{name}": value for name, value in figures(changes).items()},
            **({"not_done": dg.MetadataValue.text("\n".join(notes))} if notes else {}),
            "preview": preview(table, ["id", "language", "tokens", "content_tokens"]),
        },
    )
