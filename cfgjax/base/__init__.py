"""What everything else rests on: errors, files, exit codes, progress, compilation."""
