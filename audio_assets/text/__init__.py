"""Stage: from transcripts to tokens."""
