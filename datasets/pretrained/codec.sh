#!/usr/bin/env bash
# Trains the codec that ships, from a folder or archive of MIDI files and FluidR3:
#
#     datasets/pretrained/codec.sh MIDI FOLDER [SOUNDFONT]
#
# An interrupted run goes on where it was when it is started again. It is as long as the clock says,
# so a faster machine makes more steps of it, and other weights.
set -euo pipefail
midi=$1 folder=$2 soundfont=${3-}
mkdir -p "$folder"
[ -d "$folder/loops" ] || midiloop extract "$midi" -o "$folder/loops" --rules open --resume
train() {  # NAME MINUTES [OPTIONS]
  audioloop train codec "$folder/loops" -o "$folder/$1" --minutes "$2" \
    ${soundfont:+--soundfont "$soundfont"} --resume "${@:3}"
}
pack() {  # NAME PACKED
  [ -d "$folder/$2" ] || python -c "from pathlib import Path; from audioloop.codec import compression
from midiloop.common import checkpoint
checkpoint.pack(Path('$folder/$1'), Path('$folder/$2'), compression.KINDS)"
}
train spectra 32.5 --loss-weight waveform=1 --loss-weight level=1 --loss-weight adversarial=1
train codec 36 --init-from "$folder/spectra" --learning-rate 5e-4
pack codec packed-codes
# What its codes mean is settled, in 16 bits. The decoder learns on alone, and not to waver.
train decoder 36 --init-from "$folder/packed-codes" --decoder-only --learning-rate 5e-4 \
  --loss-weight change=8 --loss-weight adversarial=1
pack decoder packed-codec
