#!/usr/bin/env bash
# Trains the two models of codes that ship, from a folder or archive of MIDI files and FluidR3:
#
#     datasets/pretrained/tokens.sh MIDI FOLDER [SOUNDFONT]
#
# An interrupted run goes on where it was when it is started again. Runs are as long as the clock
# says, so a faster machine makes more steps of them, and other weights.
set -euo pipefail
midi=$1 folder=$2 soundfont=${3-}
mkdir -p "$folder"
[ -d "$folder/loops" ] || midiloop extract "$midi" -o "$folder/loops" --rules open --resume
train() {  # KIND MINUTES [OPTIONS]
  audioloop train "$1" "$folder/loops" -o "$folder/$1" --minutes "$2" --token-cache "$folder/coded" \
    --precision bfloat16 --workers 2 ${soundfont:+--soundfont "$soundfont"} --resume "${@:3}"
  python -c "from pathlib import Path; from audioloop.tokens import pretrained; from midiloop.common import checkpoint
checkpoint.pack(Path('$folder/$1'), Path('$folder/packed-$1'), pretrained.KINDS)"
}
train causal 277
train masked 323 --init-from "$folder/causal"
