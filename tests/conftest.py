"""Triton decides when it is first imported whether kernels are interpreted, so it is told here.

Other packages import it before the kernels' tests do. Without a GPU they run in its interpreter.
"""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
