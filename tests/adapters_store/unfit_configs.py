"""Every field of adapter_config.json: what in it makes an adapter unfit and how the refusal says so, and which change nothing."""

from __future__ import annotations

from typing import Any

_CONVERT = "path_initial_model_for_weight_conversion"
_NAMES = "it must be a list of module names"
_LAYERS = "it must be a layer's number or a list of them"
_CHAT = "train the adapter for chat, with task_type CAUSAL_LM"

# What is changed in the demo adapter's config (... takes the field out), and words that the refusal holds: the fault and the remedy.
UNFIT_CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "another PEFT method": ({"peft_type": "IA3"}, ("peft_type is 'IA3'", "only LORA adapters are served")),
    "no PEFT method": ({"peft_type": ...}, ("peft_type is None", "only LORA")),
    "rank 0": ({"r": 0}, ("r is 0", "a whole number above 0")),
    "a negative rank": ({"r": -4}, ("r is -4", "a whole number above 0")),
    "rank as text": ({"r": "4"}, ("r is '4'", "a whole number")),
    "rank true": ({"r": True}, ("r is True", "it must be the rank")),
    "a fractional rank": ({"r": 4.0}, ("r is 4.0", "a whole number")),
    "no rank, which is 8 to PEFT": ({"r": ...}, ("r is None", "it must be the rank")),
    "a rank that is not the weights'": ({"r": 8}, ("r is 8, so A must be [8, in]", "upload the config that belongs to these weights")),
    "a rank above the limit": ({"r": 128}, ("r is 128, base smollm2-135m takes up to 64", "train with a lower r, or raise lora.max_rank")),
    "alpha 0": ({"lora_alpha": 0}, ("lora_alpha is 0", "give the alpha it was trained with")),
    "no alpha, which is 8 to PEFT": ({"lora_alpha": ...}, ("lora_alpha is None", "it must be a number")),
    "alpha as text": ({"lora_alpha": "16"}, ("lora_alpha is '16'", "it must be a number")),
    "alpha true": ({"lora_alpha": True}, ("lora_alpha is True", "it must be a number")),
    "alpha huge": ({"lora_alpha": 10**400}, ("lora_alpha is 1000", "at most 1000000")),
    "alpha infinite": ({"lora_alpha": float("inf")}, ("Infinity is not a number", "save and upload it again")),
    "alpha no number": ({"lora_alpha": float("nan")}, ("NaN is not a number", "save and upload it again")),
    "a dropout of 2": ({"lora_dropout": 2}, ("lora_dropout is 2", "from 0 to 1")),
    "dropout as text": ({"lora_dropout": "0.1"}, ("lora_dropout is '0.1'", "from 0 to 1")),
    "biases of all": ({"bias": "all"}, ("bias is 'all'", "train with bias='none'")),
    "biases of LoRA": ({"bias": "lora_only"}, ("bias is 'lora_only'", "train with bias='none'")),
    "rsLoRA as text": ({"use_rslora": "yes"}, ("use_rslora is 'yes'", "true or false")),
    "fan in, fan out": ({"fan_in_fan_out": True}, ("fan_in_fan_out is true", "train with fan_in_fan_out=False")),
    "fan in, fan out as text": ({"fan_in_fan_out": "no"}, ("fan_in_fan_out is 'no'", "true or false")),
    "DoRA": ({"use_dora": True}, ("use_dora is True", "train with use_dora=False")),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, ("modules_to_save is ['lm_head']", "train with modules_to_save=None")),
    "a bias of B": ({"lora_bias": True}, ("lora_bias is True", "train with lora_bias=False")),
    "a rank pattern": ({"rank_pattern": {"q_proj": 8}}, ("rank_pattern is {'q_proj': 8}", "train with r alone")),
    "an alpha pattern": ({"alpha_pattern": {"q_proj": 8}}, ("alpha_pattern is {'q_proj': 8}", "train with lora_alpha alone")),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 2]]}, ("layer_replication is [[0", "train without layer_replication")),
    "trained tokens": ({"trainable_token_indices": [1]}, ("trainable_token_indices is [1]", "train with trainable_token_indices=None")),
    "target parameters": ({"target_parameters": ["experts.up"]}, ("target_parameters is ['experts.up']", "target_modules alone")),
    "activated LoRA": ({"alora_invocation_tokens": [1, 2]}, ("alora_invocation_tokens is [1, 2]", "train without")),
    "QA-LoRA": ({"use_qalora": True}, ("use_qalora is True", "QA-LoRA is not served")),
    "Arrow": ({"arrow_config": {"top_k": 3}}, ("arrow_config is", "upload the LoRA adapters it routes between")),
    "block-diagonal": ({"use_bdlora": {"nblocks": 2}}, ("use_bdlora is", "train with use_bdlora=None")),
    "KaSA": ({"kasa_config": {"beta": 0.1}}, ("kasa_config is", "train without kasa_config")),
    "Monte Carlo": ({"monteclora_config": {"num_samples": 4}}, ("monteclora_config is", "train without monteclora_config")),
    "VeLoRA": ({"velora_config": {"num_groups": 4}}, ("velora_config is", "train without velora_config")),
    "PiSSA": ({"init_lora_weights": "pissa_niter_16"}, ("init_lora_weights is 'pissa_niter_16'", _CONVERT)),
    "OLoRA": ({"init_lora_weights": "olora"}, ("init_lora_weights is 'olora'", _CONVERT)),
    "CorDA": ({"init_lora_weights": "corda"}, ("init_lora_weights is 'corda'", _CONVERT)),
    "LoRA-GA": ({"init_lora_weights": "lora_ga"}, ("init_lora_weights is 'lora_ga'", _CONVERT)),
    "LoftQ": ({"init_lora_weights": "loftq"}, ("init_lora_weights is 'loftq'", "train with init_lora_weights=True")),
    "an unknown start": ({"init_lora_weights": 7}, ("init_lora_weights is 7", "train with init_lora_weights=True")),
    "a classifier": ({"task_type": "SEQ_CLS"}, ("task_type is 'SEQ_CLS'", _CHAT)),
    "a translator": ({"task_type": "SEQ_2_SEQ_LM"}, ("task_type is 'SEQ_2_SEQ_LM'", _CHAT)),
    "a classifier by its class": (
        {"task_type": None, "auto_mapping": {"base_model_class": "LlamaForSequenceClassification"}},
        ("trained on a 'LlamaForSequenceClassification'", "through AutoModelForCausalLM"),
    ),
    "another architecture": (
        {"base_model_name_or_path": None, "auto_mapping": {"base_model_class": "MistralForCausalLM"}},
        ("trained on a 'MistralForCausalLM', base smollm2-135m is a LlamaForCausalLM", "train it on smollm2-135m"),
    ),
    "a base that is no name": ({"base_model_name_or_path": 7}, ("base_model_name_or_path is 7", "the base model's name")),
    "half a character in the base's name": ({"base_model_name_or_path": "\ud83d"}, ("adapter_config.json is not UTF-8", "save and upload")),
    "no targets": ({"target_modules": None}, ("target_modules is None", _NAMES)),
    "empty targets": ({"target_modules": []}, ("target_modules is []", _NAMES)),
    "empty text as target": ({"target_modules": ""}, ("target_modules is ''", _NAMES)),
    "targets of numbers": ({"target_modules": [1]}, ("target_modules is [1]", _NAMES)),
    "a target without weights": (
        {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]},
        ("layers.0.mlp.up_proj", "are adapted, and the weights have nothing for them", "upload the whole adapter"),
    ),
    "all-linear, and weights of some": ({"target_modules": "all-linear"}, ("layers.0.mlp.down_proj", "the weights have nothing for them")),
    "weights without a target": (
        {"target_modules": ["q_proj", "v_proj"]},
        ("weights for model.layers.0.self_attn.k_proj", "PEFT would not read them", "the config that belongs to these weights"),
    ),
    "targets that the base lacks alone": ({"target_modules": ["c_attn"]}, ("weights for model.layers.0", "PEFT would not read them")),
    "exclusions of numbers": ({"exclude_modules": [1]}, ("exclude_modules is [1]", _NAMES)),
    "weights of what is excluded": ({"exclude_modules": ["o_proj"]}, ("weights for model.layers.0.self_attn.o_proj", "would not read")),
    "layers as text": ({"layers_to_transform": "0"}, ("layers_to_transform is '0'", _LAYERS)),
    "layers of text": ({"layers_to_transform": ["0"]}, ("layers_to_transform is ['0']", _LAYERS)),
    "layers true": ({"layers_to_transform": True}, ("layers_to_transform is True", _LAYERS)),
    "weights of other layers": ({"layers_to_transform": [0, 1]}, ("weights for model.layers.10.self_attn.k_proj", "would not read them")),
    "a layer that no model has": ({"layers_to_transform": [-1]}, ("weights for model.layers.0", "would not read them")),
    "layers beside a pattern": (
        {"layers_to_transform": 0, "target_modules": ".*_proj"},
        ("layers_to_transform and layers_pattern go with a list of target_modules", "upload the config that PEFT wrote"),
    ),
    "a list of layers without layers": (
        {"layers_pattern": "layers"},
        ("layers_pattern is 'layers' and layers_to_transform is not given", "say which layers, or remove both"),
    ),
    "a list of layers that is no name": (
        {"layers_pattern": 7, "layers_to_transform": 0},
        ("layers_pattern is 7", "it must be the name of the list of layers"),
    ),
    "layers counted in another list": (
        {"layers_pattern": "blocks", "layers_to_transform": list(range(30))},
        ("weights for model.layers.0", "would not read them"),
    ),
    "a field nobody knows": ({"use_magic": True}, ("'use_magic' is True: the field is not known here", "remove it if it changes nothing")),
}  # fmt: skip

# Fields of PEFT's that change nothing in what an adapter computes, each with a value that is not its usual one.
HARMLESS: dict[str, Any] = {
    "corda_config": {"corda_method": "ipm"},  # how a start was made; the start itself is init_lora_weights
    "ensure_weight_tying": True,  # of embeddings, which are refused
    "eva_config": {"rho": 1.0},
    "inference_mode": False,
    "loftq_config": {"loftq_bits": 4},
    "lora_ga_config": {"scale": "unit"},
    "megatron_config": {"tensor_model_parallel_size": 1},  # how it was trained
    "megatron_core": "megatron.other",
    "peft_version": "0.4.0",
    "qalora_group_size": 32,  # of QA-LoRA, which is refused
    "revision": "main",
    "runtime_config": {"ephemeral_gpu_offload": True},
}
