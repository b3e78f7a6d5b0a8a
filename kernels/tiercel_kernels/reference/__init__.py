"""The specification of every op in plain torch. Runs on any device, on none of them fast."""
