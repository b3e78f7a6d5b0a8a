"""The engine: the client the API sees, the process behind it, the step loop, its supervisor."""
