"""Frozen structs that cross a process boundary. Plain numbers and strings, no logic, no torch."""
