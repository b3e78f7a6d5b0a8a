"""A second rank on the CUDA platform's code, on a CPU: `-m support.paged_follower PARENT_PID`."""

import sys

import msgspec
import torch

from tiercel.child_process import end_with_parent
from tiercel.wire.options import EngineOptions
from tiercel.worker.cuda.platform import CudaPlatform
from tiercel.worker.follower import follow
from tiercel_kernels.choose import reference_ops

if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]), 1)
    torch.set_num_threads(1)
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineOptions)
    platform = CudaPlatform(torch.device("cpu"), reference_ops(), overlap=options.overlap)
    sys.exit(follow(options, platform))
