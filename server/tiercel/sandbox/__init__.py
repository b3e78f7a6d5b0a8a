"""Killable child processes for work on text that may blow up. Knows no job's meaning."""
