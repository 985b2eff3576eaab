#!/usr/bin/env bash
# Trains the hands that ship, from a folder or archive of MIDI files:
#
#     datasets/pretrained/hands.sh MIDI FOLDER
#
# An interrupted run goes on where it was when it is started again. The number of threads is part of
# the recipe, as in train.sh.
set -euo pipefail
midi=$1 folder=$2
mkdir -p "$folder"
[ -d "$folder/loops" ] || midiloop extract "$midi" -o "$folder/loops" --rules open --resume
OMP_NUM_THREADS=1 midiloop train hands "$folder/loops" -o "$folder/run" --epochs 12 --batch-size 32 \
  --learning-rate 1.5e-3 --resume
python -c "from pathlib import Path; from midiloop import models; from midiloop.common import checkpoint
checkpoint.pack(Path('$folder/run/hands'), Path('$folder/packed-hands'), models.KINDS)"
