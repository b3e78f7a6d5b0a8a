"""How a job in the sandbox can end without an answer. The caller makes them a client's answer."""

from tiercel.errors import TiercelError


class SandboxError(TiercelError):
    """A job has no answer. The text is a clause that can follow a colon."""


class JobRefused(SandboxError):
    """The job itself said no: `kind` for machines, the text for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class SandboxTimeout(SandboxError):
    """The job took longer than it may; its process was killed."""


class SandboxOutOfMemory(SandboxError):
    """The job needed more memory than it may have."""


class SandboxReplyTooLarge(SandboxError):
    """The answer has more bytes than it may have."""


class SandboxCrashed(SandboxError):
    """The process ended by itself, could not start, or the job has a defect."""


class SandboxUnavailable(SandboxCrashed):
    """There is no process to be had. Nothing is wrong with the job."""


class SandboxBusy(SandboxError):
    """Too many jobs wait, or this one waited too long. Nothing is wrong with it: try again."""
