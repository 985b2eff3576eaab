#!/usr/bin/env bash
# Trains the model that ships, from a folder or archive of MIDI files:
#
#     datasets/pretrained/train.sh MIDI FOLDER
#
# An interrupted run goes on where it was when it is started again. The number of threads is part of
# the recipe: sums in another order round differently, and give other weights of the same quality.
set -euo pipefail
midi=$1 folder=$2
mkdir -p "$folder"
[ -d "$folder/loops" ] || midiloop extract "$midi" -o "$folder/loops" --rules open --resume
OMP_NUM_THREADS=1 midiloop train vq-vae "$folder/loops" -o "$folder/run" --preset bars --stage vq-vae \
  --epochs 14 --transpose 5 --precision bfloat16 --seed 1 --resume
OMP_NUM_THREADS=1 midiloop train vq-vae "$folder/loops" -o "$folder/run" --preset bars --stage prior \
  --epochs 11 --batch-size 128 --transpose 5 --precision bfloat16 --seed 1 --resume
python -c "from pathlib import Path; from midiloop.training import recipes
recipes.pack(Path('$folder/run'), Path('$folder/packed'))"
