"""A bucket of speech recordings becomes a queryable, quality-audited text corpus, as Dagster assets."""
