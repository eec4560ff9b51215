"""Code that every other package uses: errors, files, exit codes, progress, compilation."""
