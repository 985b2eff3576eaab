"""Make magnet.safetensors with audiocraft 1.3.0: logits and codes of a tiny MAGNeT.

audiocraft wants PyTorch 2.1 and xformers, so it gets an environment of its own (about 2 GB), which
``make test-audiocraft`` makes before it runs this.

Three things of it are replaced here: xformers' attention by PyTorch's, with the same bias; the T5
by a table of random states, one for each word; and the published weights by random ones. What is
left is audiocraft's own: the loader, conditions and their dropout, the network, the decoder.

Conditions and logits are of 64 bits and rounded to seven decimals, for in 32 bits a CPU's own order
of summation shows in the fifth. Codes are drawn in 32, as audiocraft does.

The decoder draws from PyTorch's own generator, once a step, and from nothing else. So its codes
are those of a generator of the caller's with the same seed.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

SEED = 11
N_FRAMES = 50  # no multiple of 3, and none of 8
TEXTS = ["warm bass and dry drums at 96", "slow dub"]
PROMPT_FRAMES = 7
DRAWS: dict[str, dict[str, Any]] = {  # how to write
    "nonoverlap": {"span_arrangement": "nonoverlap"},
    "stride1": {"span_arrangement": "stride1"},
    "few": {
        "span_arrangement": "nonoverlap", "decoding_steps": [7, 1, 3, 2], "temp": 1.5,
        "top_p": 0.6, "max_cfg_coef": 4.0, "min_cfg_coef": 2.0,
    },
}  # fmt: skip

# Of the published configuration, what the loader asks for, with other sizes.
CONFIG = f"""
lm_model: transformer_lm_magnet
compression_model_checkpoint: //pretrained/facebook/encodec_32khz
channels: 1
sample_rate: 32000
dataset: {{segment_duration: {N_FRAMES // 50}}}
masking: {{span_len: 3}}
codebooks_pattern: {{modeling: parallel, parallel: {{empty_initial: -1}}}}
transformer_lm:
  {{dim: 64, num_heads: 4, num_layers: 2, hidden_scale: 4, n_q: 4, card: 32, dropout: 0.0,
  emb_lr: null, activation: gelu, norm_first: true, bias_ff: false, bias_attn: false,
  bias_proj: false, past_context: null, causal: false, custom: false, memory_efficient: true,
  attention_as_float32: false, layer_scale: null, positional_embedding: sin, xpos: false,
  checkpointing: none, weight_init: gaussian, depthwise_init: current, zero_bias_init: true,
  norm: layer_norm, cross_attention: false, qk_layer_norm: false, qk_layer_norm_cross: false,
  attention_dropout: null, kv_repeat: 1, two_step_cfg: false, subcodes_context: 5,
  compression_model_framerate: 50, segment_duration: 0, span_len: -1}}
classifier_free_guidance: {{training_dropout: 0.3, inference_coef: 3.0}}
attribute_dropout: {{}}
fuser:
  {{cross_attention_pos_emb: false, cross_attention_pos_emb_scale: 1, sum: [], prepend: [],
  cross: [description], input_interpolate: []}}
conditioners:
  args: {{merge_text_conditions_p: 0.25, drop_desc_p: 0.5}}
  description: {{model: t5, t5: {{name: t5-base, finetune: false, word_dropout: 0.3,
    normalize_text: false}}}}
"""


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Any = None, p: float = 0) -> Tensor:
    """xformers' attention, whose tensors are (B, T, heads, D)."""
    assert p == 0
    query, key, value = (a.transpose(1, 2) for a in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)


def stand_in() -> None:
    """Put a module in the place of xformers."""
    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    vars(ops).update(
        memory_efficient_attention=attention,
        unbind=torch.unbind,
        LowerTriangularMask=type("LowerTriangularMask", (), {}),
    )
    vars(package).update(ops=ops)
    sys.modules |= {"xformers": package, "xformers.ops": ops}


class Words(dict[str, Tensor]):
    """What a tokenizer gives back."""

    def to(self, device: str) -> Words:
        return Words({name: tensor.to(device) for name, tensor in self.items()})


class Tokenizer:
    """A number for each new word, and an end to each text; padding is 0."""

    numbers: dict[str, int]

    @classmethod
    def from_pretrained(cls, name: str) -> Tokenizer:
        tokenizer = cls()
        tokenizer.numbers = {}
        return tokenizer

    def number(self, word: str) -> int:
        return self.numbers.setdefault(word, len(self.numbers) + 2)

    def __call__(self, texts: list[str], **_: Any) -> Words:
        rows = [torch.tensor([*map(self.number, text.split()), 1]) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return Words(input_ids=ids, attention_mask=(ids > 0).long())


class States(torch.nn.Module):
    """Random states of words, of as many digits as 16 bits hold."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.randn(64, 768, generator=torch.Generator().manual_seed(SEED))
        self.register_buffer("table", table.half().float())

    @classmethod
    def from_pretrained(cls, name: str) -> States:
        return cls()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        table = self.get_buffer("table")
        return types.SimpleNamespace(last_hidden_state=table[input_ids])


def random_weights(names: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of 16 bits that make codes unlike each other: fresh ones would hardly differ."""
    rng = torch.Generator().manual_seed(SEED)
    found = {}
    for name, tensor in names.items():
        weight = torch.randn(tensor.shape, generator=rng)
        if tensor.dim() > 1 and not name.startswith("emb."):
            weight *= (2.0 if name.startswith("linears.") else 1.2) * tensor.shape[1] ** -0.5
        elif name.endswith("weight") and tensor.dim() == 1:
            weight = 1 + 0.2 * weight
        found[name] = weight.half()
    return found


def load(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """A MAGNeT, by audiocraft's loader, of weights in 16 bits."""
    builders = importlib.import_module("audiocraft.models.builders")
    loaders = importlib.import_module("audiocraft.models.loaders")
    conditioners = importlib.import_module("audiocraft.modules.conditioners")
    vars(conditioners).update(T5Tokenizer=Tokenizer, T5EncoderModel=States)
    config = importlib.import_module("omegaconf").OmegaConf.create(CONFIG)
    config.device, config.dtype = "cpu", "float32"
    config.conditioners.pop("args")
    config.transformer_lm.segment_duration = 1
    fresh = builders.get_lm_model(config).state_dict()
    weights = random_weights(fresh)
    checkpoint = {"best_state": weights, "xp.cfg": CONFIG, "version": "1.3.0", "exported": True}
    torch.save(checkpoint, folder / "state_dict.bin")
    return loaders.load_lm_model_magnet(folder, 50), weights


def rounded(tensor: Tensor) -> Tensor:
    """To what every CPU agrees on."""
    assert tensor.dtype == torch.float64
    return tensor.round(decimals=7)


@torch.no_grad()
def main() -> None:
    stand_in()
    conditioners = importlib.import_module("audiocraft.modules.conditioners")
    with tempfile.TemporaryDirectory() as folder:
        model, weights = load(Path(folder))
    texts = [conditioners.ConditioningAttributes(text={"description": text}) for text in TEXTS]
    tokens = model.condition_provider.tokenize(texts)
    reader = model.condition_provider.conditioners["description"]
    states = reader.t5(**tokens["description"]).last_hidden_state
    rng = torch.Generator().manual_seed(SEED)
    codes = torch.randint(33, (2, 4, N_FRAMES), generator=rng)  # gaps among them
    prompt = torch.randint(32, (2, 4, PROMPT_FRAMES), generator=rng)
    drawn = {}
    for name, settings in DRAWS.items():
        for given, start in (("", None), (".prompted", prompt)):
            torch.manual_seed(SEED)
            drawn[f"drawn.{name}{given}"] = model.generate(
                prompt=start, conditions=texts, num_samples=2, max_gen_len=N_FRAMES,
                **({"temp": 3.0, "top_k": 0, "top_p": 0.9} | settings),
            )  # fmt: skip
    model.double()
    condition = model.condition_provider(tokens)
    found = {
        "states": states.half(),
        "mask": condition["description"][1].bool(),
        "condition": rounded(condition["description"][0]),
        "codes": codes,
        "prompt": prompt,
    }
    for stage in range(4):
        logits = model(codes, [], condition, stage=stage)[:, stage]
        found[f"logits.{stage}"] = rounded(logits)
    tensors = {f"weights.{name}": weight for name, weight in weights.items()} | found | drawn
    path = Path(__file__).with_suffix(".safetensors")
    # One entry, for more than one would be written in any order.
    about = json.dumps({"config": CONFIG, "seed": SEED, "draws": DRAWS})
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, {"about": about})
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
