"""Quantizes on the processor that the environment names, and prints a digest of the stored bytes for each target given."""

import hashlib
import json
import sys
from collections.abc import Mapping

from test_fused import stored, weights

import qformat
from qformat.kernels import cpu


def digest(parts: Mapping[str, bytes]) -> str:
    """Give one digest of all parts."""
    return hashlib.sha256(b"".join(parts[role] for role in sorted(parts))).hexdigest()


def main() -> None:
    """Quantize the weights that rules could trip over."""
    digests = {target: digest(stored(qformat.quantize(weights(), target))) for target in sys.argv[1:]}
    print(json.dumps({"digests": digests, "picks": cpu.picks()}))


if __name__ == "__main__":
    main()
