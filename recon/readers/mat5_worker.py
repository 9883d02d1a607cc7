"""The process that reads MATLAB files older than 7.3: run as a script by `arrays`, imports SciPy and NumPy.

Called with a path, it answers with a line of JSON: the type and shape of every variable. A line of JSON with
a name asks for that variable; a line of JSON with the number of its bytes follows, and the variable as .npy.
What fails is answered with {"error": ...}.
"""

import io
import json
import math
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import scipy.io

MOST_COMPRESSED = 1100  # numbers that deflate makes of a byte at most, and a little


def serve(path: Path, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer what the file holds, then the variable that is asked for."""
    try:
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(path, appendmat=False)}
        most = MOST_COMPRESSED * path.stat().st_size
        if any(not 0 <= math.prod(shape) <= most for shape in shapes.values()):
            raise ValueError("a variable is larger than the file can hold")
        content = scipy.io.loadmat(path, appendmat=False)
    except Exception as error:  # whatever the parser trips over in a damaged file
        send(answers, {"error": " ".join(str(error).split())[:160]})
        return
    found = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    send(answers, {"variables": {name: [str(v.dtype), list(v.shape)] for name, v in found.items()}})
    line = requests.readline()
    if line:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, found[json.loads(line)], allow_pickle=False)
        send(answers, {"bytes": len(buffer.getbuffer())})
        answers.write(buffer.getbuffer())
        answers.flush()


def send(answers: BinaryIO, message: dict[str, object]) -> None:
    """Write one line."""
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
