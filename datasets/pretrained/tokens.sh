#!/usr/bin/env bash
# Trains the two models of codes that ship, from a folder or archive of MIDI files and FluidR3:
#
#     datasets/pretrained/tokens.sh MIDI FOLDER [SOUNDFONT]
#
# An interrupted run goes on where it was when it is started again. Runs are as long as the clock
# says, so a faster machine makes more steps of them, and other weights.
set -euo pipefail
midi=$1 folder=$2
mkdir -p "$folder"
[ -d "$folder/loops" ] || midiloop extract "$midi" -o "$folder/loops" --rules open --resume
for model in masked:165 causal:149; do
  audioloop train "${model%:*}" "$folder/loops" -o "$folder/${model%:*}" --minutes "${model#*:}" \
    --coded "$folder/coded" --workers 2 ${3:+--sf2 "$3"} --resume
  python -c "from pathlib import Path; from audioloop import token_models; from midiloop import checkpoint
checkpoint.pack(Path('$folder/${model%:*}'), Path('$folder/packed-${model%:*}'), token_models.KINDS)"
done
