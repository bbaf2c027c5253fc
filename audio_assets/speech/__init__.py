"""From audio files to judged transcripts: decode, find speech, cut windows, transcribe, judge, cache.

`transcribe.transcribe_files` runs it all; `engine.Engine` is what a speech recogniser has to be.
"""
