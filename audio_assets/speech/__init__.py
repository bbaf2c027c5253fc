"""Stage: from audio files to transcripts."""
