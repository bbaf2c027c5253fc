"""The jobs: what a run materializes."""

import dagster as dg

discover_job = dg.define_asset_job(
    "discover_job", selection=["r2_prefixes"], description="List the bucket and register its prefixes as partitions."
)
prefix_job = dg.define_asset_job(
    "prefix_job",
    selection=[
        "raw_audio",
        "transcripts",
        "transcription_ledger",
        "tokens",
        "transcript_quality",
        "prefix_summary",
        "token_frequency",
        "prefix_statistics",
        "prefix_drift",
    ],
    description="Bring one prefix up to date, from its objects to its figures.",
)
corpus_job = dg.define_asset_job(
    "corpus_job",
    selection=["corpus_summary", "prefix_keywords", "corpus_report", "corpus_export"],
    description="Refresh what is made of all prefixes: summary, report, exports.",
)
