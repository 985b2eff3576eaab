"""Mine a folder from Python, then look at the dataset with the library and with pyarrow alone.

python examples/mine_a_corpus.py FOLDER LOOPS
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from midiloop.dataset.parquet import LoopDataset
from midiloop.metrics import paper
from midiloop.mining import extract, rules


def main(folder: Path, out: Path) -> None:
    settings = extract.Settings(rules.preset("open"), stride_bars=4)
    extract.run([folder], out, settings)

    dataset = LoopDataset(out)
    print(f"{len(dataset)} loops")
    print("why others gave none:", dict(Counter(reject.reason for reject in dataset.rejects())))
    row = paper.evaluate(batch.rolls for batch in dataset.batches())
    print("metrics:", {name: round(value, 4) for name, value in row.items()})

    # Any reader of Parquet will do: a roll is 1,488 bytes of np.packbits.
    table = pq.read_table(out / "loops")
    packed = np.frombuffer(table["roll"][0].as_py(), dtype=np.uint8)
    roll = np.unpackbits(packed).reshape(128, 93).astype(bool)
    print(f"the first loop has {roll.sum()} cells on; it is in split {table['split'][0]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
