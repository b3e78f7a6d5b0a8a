"""Launch parameters by op, device and shape: data, chosen offline; nothing is tuned in serving."""
