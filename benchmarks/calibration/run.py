"""Cost and accuracy of edgepipe's calibration on four reference models; writes results.md beside this file.

python benchmarks/calibration/run.py --data ../shared/data
"""

from __future__ import annotations

import argparse
from pathlib import Path

import accuracy
import common
import cost

HERE = Path(__file__).parent
HEADER = """\
# Calibration

Measured on {machine}.

## Cost

CPU time of the whole of calibration as a multiple of the floor: the same 64 samples through a plain session
of the unchanged model, in its fastest batch size, the creation of the session included. Medians of
{rounds} interleaved rounds ({peer_rounds} of ONNX Runtime's), {threads}. "all" collects what every algorithm
needs in one pass; "a further sample" is what each of 192 more costs; "auto, besides" is what the choice of
ranges by measured error takes on top of it.

{cost}
## Accuracy

INT8 models of the pass quantize.static with each way of choosing ranges, per-channel weights, against the
float model, on up to {evaluated} samples that were not calibrated on: output SQNR in dB / top-1 agreement in
per cent, for {draws} draws of 64 calibration samples. "auto" chooses between the ways by measured error.

{accuracy}"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", help="models whose name contains this text")
    parser.add_argument("--output", type=Path, default=HERE / "results.md")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="of every session; 0 is the runtime's default")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--evaluated", type=int, default=128)
    arguments = parser.parse_args()
    cost.limit_threads(arguments.threads)
    cases = common.load(arguments.data.resolve(), arguments.only)
    text = HEADER.format(
        machine=cost.machine(),
        threads=f"{arguments.threads or 'all'} threads",
        rounds=arguments.rounds,
        peer_rounds=arguments.peer_rounds,
        cost=cost.table(cases, arguments.rounds, arguments.peer_rounds, arguments.threads),
        accuracy=accuracy.table(cases, arguments.draws, arguments.evaluated),
        draws=arguments.draws,
        evaluated=arguments.evaluated,
    )
    arguments.output.write_text(text)


if __name__ == "__main__":
    main()
