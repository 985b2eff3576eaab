# Two commands for everyone: `make demo` and `make test`. The rest is for contributors.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build
RESULTS := $(BUILD)/results
AUDIOCRAFT := $(BUILD)/audiocraft-env
# libatomic1 is for the Node.js inside playwright.
SYSTEM := libfluidsynth3 chromium libatomic1
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo sounds docs results test test-slow test-audiocraft system lint fuzz torture bench bench-models bench-render \
	check-real-loops bench-seams bench-hands bench-codec bench-magnet bench-onsets bench-following bench-unconditioned \
	bench-attention clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo  ## songs -> loops -> new loops -> audio -> a half made anew -> its seam
	@rm -rf $(addprefix $(BUILD)/,songbook loops new audio refined seam.png)
	@$(BIN)/python datasets/songbook/prepare.py $(BUILD)/songbook --check
	$(BIN)/midiloop extract $(BUILD)/songbook -o $(BUILD)/loops
	$(BIN)/midiloop inspect $(BUILD)/loops
	$(BIN)/midiloop plot $(BUILD)/loops -o $(BUILD)/loops.png
	$(BIN)/midiloop generate -n 8 --feel 1 -o $(BUILD)/new
	$(BIN)/audioloop render $(BUILD)/new/midi -o $(BUILD)/audio
	$(BIN)/audioloop refine $(BUILD)/new/midi/0000[01]_*.mid -o $(BUILD)/refined
	$(BIN)/audioloop check $(BUILD)/audio $(BUILD)/refined
	$(BIN)/audioloop seam $(BUILD)/refined/00000_*.wav -o $(BUILD)/seam.png

# One loop in three ways, and one without notes; docs/sounds is part of the repository.
sounds: $(VENV)/.demo  ## the audio examples of the README, from the models that ship
	@rm -rf $(BUILD)/sounds; mkdir -p $(BUILD)/sounds
	$(BIN)/midiloop generate -n 4 --feel 1 -o $(BUILD)/sounds/new
	$(BIN)/audioloop render $(BUILD)/sounds/new/midi/00003_*.mid --format ogg -o $(BUILD)/sounds/rendered
	$(BIN)/audioloop refine $(BUILD)/sounds/new/midi/00003_*.mid --format ogg -o $(BUILD)/sounds/refined
	$(BIN)/audioloop generate $(BUILD)/sounds/new/midi/00003_*.mid --format ogg -o $(BUILD)/sounds/generated
	$(BIN)/audioloop generate --bpm 100 --bars 4 --format ogg -o $(BUILD)/sounds/unconditional
	for kind in rendered refined generated unconditional; do \
		cp $(BUILD)/sounds/$$kind/*.ogg docs/sounds/$$kind.ogg || exit; done

docs: $(VENV)/.dev  ## the documentation as a site in build/site; a warning is an error
	$(BIN)/mkdocs build --strict --quiet --site-dir $(BUILD)/site

# Each file stands beside the page of docs/results that shows it.
results: $(VENV)/.dev  ## measure again what does not take hours: make results LOOPS=dataset
	@test -f "$(LOOPS)/manifest.json" || \
		{ echo "make results LOOPS=dataset: name a dataset that 'midiloop extract' wrote"; exit 2; }
	@mkdir -p $(RESULTS)
	$(BIN)/midiloop evaluate --reference $(LOOPS) --reference-split train -n 20000 > $(RESULTS)/loop-writer.txt
	$(BIN)/python tests/benchmarks/hands.py $(LOOPS) --split test > $(RESULTS)/hands.txt
	$(BIN)/python tests/benchmarks/seams.py > $(RESULTS)/renders.txt
	$(BIN)/python tests/benchmarks/codec.py $(LOOPS) --loops 200 > $(RESULTS)/codec.txt
	$(BIN)/python tests/benchmarks/magnet.py $(LOOPS) > $(RESULTS)/generation.txt
	@echo "measured: $(RESULTS)"
	@echo "left out, as each takes longer:"
	@echo "  paper-models  midiloop reproduce $(LOOPS) -o OUT --epochs 16 --batch-size 128 --precision bfloat16"
	@echo "  generation    python tests/benchmarks/following.py $(LOOPS) --seeds 3, for each row"
	@echo "  loopgen       audioloop benchmark $(LOOPS) -o OUT --decode-steps 12,2,2,2 --unconditioned-decode-steps 24,2,2,2"
	@echo "  the models    datasets/pretrained: the songs that they learned from are not in this repository"

test: lint system  ## everything that CI checks
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

# The tests that need them skip where they are absent, but not in CI.
system:  ## a FluidSynth and a browser from Debian's packages, where there is apt and root
	@if command -v chromium >/dev/null && ldconfig -p | grep -q libfluidsynth && \
		ldconfig -p | grep -q libatomic; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		export DEBIAN_FRONTEND=noninteractive; \
		{ apt-get update -qq; apt-get install -y -qq --no-install-recommends $(SYSTEM); } \
			> /dev/null || echo "could not install $(SYSTEM)"; \
	else echo "not installed: $(SYSTEM); tests that need them will skip"; fi

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test-slow: $(VENV)/.dev  ## the tests that `make test` leaves out
	$(BIN)/python -m pytest -q tests/midiloop/training/test_training.py tests/midiloop/common/test_trainer.py --slow

# About 2 GB: audiocraft's requirements cannot be installed as they are, see tests/golden/magnet.py.
test-audiocraft: $(VENV)/.dev $(AUDIOCRAFT)/.done  ## that MAGNeT is still audiocraft's own
	OMP_NUM_THREADS=1 $(AUDIOCRAFT)/bin/python tests/golden/magnet.py
	git diff --exit-code --stat tests/golden/magnet.safetensors
	$(BIN)/python -m pytest -q tests/audioloop/tokens/magnet/test_decode.py

fuzz: $(VENV)/.dev  ## 20,000 damaged files, each of which must end as loops or as a reject
	$(BIN)/python -m pytest -q tests/midiloop/midi/test_fuzz.py --mutations 20000

torture: $(VENV)/.dev  ## break it on purpose, and count what is lost; about 20 minutes
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/torture.py $(ROWS)

bench: $(VENV)/.dev  ## speed and memory on a corpus: make bench CORPUS=folder
	$(BIN)/python tests/benchmarks/extract.py $(CORPUS)

bench-models: $(VENV)/.dev  ## speed and memory of models: make bench-models LOOPS=dataset
	$(BIN)/python tests/benchmarks/models.py $(LOOPS)

bench-render: $(VENV)/.dev  ## speed and memory of rendering
	$(BIN)/python tests/benchmarks/render.py

bench-seams: $(VENV)/.dev  ## how seamless 200 generated loops are at random tempi
	$(BIN)/python tests/benchmarks/seams.py

check-real-loops: $(VENV)/.dev  ## verdicts on the seams of 40 loops of Debian's, beside the truth
	$(BIN)/python tests/benchmarks/real_loops.py $(BUILD)/real-loops

bench-magnet: $(VENV)/.dev  ## what the models of codes can do: make bench-magnet LOOPS=dataset
	$(BIN)/python tests/benchmarks/magnet.py $(LOOPS)

bench-onsets: $(VENV)/.dev  ## set up what hears onsets for it: make bench-onsets LOOPS=dataset
	$(BIN)/python tests/benchmarks/onsets.py $(LOOPS)

bench-following: $(VENV)/.dev  ## where onsets are lost: make bench-following LOOPS=dataset
	$(BIN)/python tests/benchmarks/following.py $(LOOPS)

bench-unconditioned: $(VENV)/.dev  ## how loops without notes sound: make bench-unconditioned LOOPS=dataset
	$(BIN)/python tests/benchmarks/unconditioned.py $(LOOPS)

bench-attention: $(VENV)/.dev  ## how fast attention learns on a CPU
	$(BIN)/python tests/benchmarks/attention.py

bench-hands: $(VENV)/.dev  ## hands beside those who played: make bench-hands LOOPS=dataset
	$(BIN)/python tests/benchmarks/hands.py $(LOOPS)

bench-codec: $(VENV)/.dev  ## how near the codec comes: make bench-codec LOOPS=dataset
	$(BIN)/python tests/benchmarks/codec.py $(LOOPS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "midiloop needs Python 3.11 or newer: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[plot,models,audio]'
	@touch $@

$(AUDIOCRAFT)/.done:
	$(PYTHON) -m venv $(AUDIOCRAFT)
	$(AUDIOCRAFT)/bin/python -m pip install --quiet torch==2.13.0 numpy einops julius omegaconf \
		hydra-core soundfile huggingface_hub tqdm num2words av librosa transformers torchmetrics \
		spacy colorlog retrying submitit treetable cloudpickle safetensors
	$(AUDIOCRAFT)/bin/python -m pip install --quiet --no-deps torchaudio==2.11.0 \
		dora-search==0.1.13 flashy==0.0.2 audiocraft==1.3.0
	rm -f $(AUDIOCRAFT)/lib/python*/site-packages/torchaudio/lib/*.so
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) $(BUILD) dist .pytest_cache .mypy_cache .ruff_cache
