"""A bucket of speech recordings becomes a queryable, quality-audited text corpus, as Dagster assets."""

import os

# Libraries that tell their makers how they are used, onnxruntime also over the network and with an id of the machine
# that it keeps in the user's cache. Each reads its variable when it is loaded, which happens later.
for _variable, _off in {
    "ORT_DISABLE_TELEMETRY": "1",
    "DAGSTER_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_variable, _off)
