"""Stage: from R2 objects to verified local files and the rows of raw_audio."""
