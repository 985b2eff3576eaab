#!/usr/bin/env bash
# Trains the codec that ships, from a folder or archive of MIDI files and FluidR3:
#
#     datasets/pretrained/codec.sh MIDI FOLDER [SOUNDFONT]
#
# An interrupted run goes on where it was when it is started again. It is as long as the clock says,
# so a faster machine makes more steps of it, and other weights.
set -euo pipefail
midi=$1 folder=$2
mkdir -p "$folder"
[ -d "$folder/loops" ] || midiloop extract "$midi" -o "$folder/loops" --rules open --resume
audioloop train codec "$folder/loops" -o "$folder/spectra" --minutes 32.5 ${3:+--sf2 "$3"} --resume \
  --lesson waveform=1 --lesson level=1 --lesson adversarial=1
audioloop train codec "$folder/loops" -o "$folder/codec" --minutes 36 ${3:+--sf2 "$3"} --resume \
  --begin-with "$folder/spectra" --learning-rate 5e-4
python -c "from pathlib import Path; from audioloop import coder; from midiloop import checkpoint
checkpoint.pack(Path('$folder/codec'), Path('$folder/packed-codec'), coder.KINDS)"
