"""Models of others, each a row, and what is looked at: for `make zoo`.

A row makes a small model with random numbers and the inputs of a batch. `examine` plans
it with such inputs, fuses it, and compares the fused model with the original.
"""

import contextlib
import datetime
import importlib
import inspect
import json
import time
import warnings
from collections import Counter
from importlib import metadata
from typing import NamedTuple

import torch
import torch.nn.functional as F

import hfusion
from hfusion.fusing import _members

SMALL = 20e6  # parameters: of models with more, gradients are not compared


class Row(NamedTuple):
    """package and name; settings: what makes it small; inputs: of a batch of so many.

    dtype: float64 shows mistakes that rounding would hide; not every model runs in it.
    """

    package: str
    name: str
    settings: dict
    inputs: object
    dtype: torch.dtype = torch.float64


class Examined(NamedTuple):
    """What came of one row; wrong: what differs from the original, in words."""

    row: Row
    calls: dict | None = None  # {kind: (before, after)}
    fused: int = 0
    refused: Counter | None = None  # {why: how many groups}
    switched_off: int = 0
    apart: int = 0  # groups that computed together less often than planned
    compared: str = ""  # what else than outputs
    dense: int = 0
    error: float = 0.0
    plan_seconds: float = 0.0
    forward_seconds: float = 0.0
    wrong: tuple = ()
    failed: str = ""  # why there is no plan


def image(side, channels=3):
    """Inputs of a vision model."""
    return lambda n: (torch.randn(n, channels, side, side),)


def images(side):
    """Inputs of a detector: a list."""
    return lambda n: ([torch.rand(3, side, side + 8 * i) for i in range(n)],)


def tokens(n, length=None):
    """Token ids: 3 to 98, so that none is special; a larger batch is also longer."""
    return torch.randint(3, 99, (n, length or 5 + n))


def text(n):
    return {"input_ids": tokens(n)}


def translation(n):
    return {"input_ids": tokens(n), "decoder_input_ids": tokens(n, 4 + n)}


def pixels(side):
    return lambda n: {"pixel_values": torch.randn(n, 3, side, side)}


def noisy(channels, side, **others):
    """Inputs of a diffusion model: an image, its times, and others, each by its shape."""

    def inputs(n):
        more = {k: torch.randn(n, *shape) for k, shape in others.items()}
        at = torch.randint(0, 99, (n,))
        return {
            "hidden_states": torch.randn(n, channels, side, side),
            "timestep": at,
            **more,
        }

    return inputs


def unet(channels, side, **others):
    def inputs(n):
        made = noisy(channels, side, **others)(n)
        return {"sample": made.pop("hidden_states"), **made}

    return inputs


def flux(n):
    return {
        "hidden_states": torch.randn(n, 16, 4),
        "encoder_hidden_states": torch.randn(n, 5, 32),
        "pooled_projections": torch.randn(n, 32),
        "timestep": torch.rand(n),
        "img_ids": torch.randint(0, 4, (16, 3)),
        "txt_ids": torch.zeros(5, 3),
    }


# The sizes that most configurations of transformers know by these names.
TINY = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FEW = TINY | {"num_key_value_heads": 2, "head_dim": 16}  # with grouped queries
SEEING = {**TINY, "image_size": 32, "patch_size": 8}
S2S = {
    "vocab_size": 99, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {
    "vocab_size": 99, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2,
    "num_heads": 4, "decoder_start_token_id": 0,
}  # fmt: skip
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2],
           "num_heads": [2, 4], "window_size": 4}  # fmt: skip
RCNN = {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20,
        "box_detections_per_img": 9, "min_size": 64}  # fmt: skip
ONE_STAGE = {"topk_candidates": 20, "detections_per_img": 9}
DETR = {
    **S2S,
    "num_queries": 7,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
}
LATENT = {  # keys and values from a few numbers
    **TINY, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16, "head_dim": 8,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
}  # fmt: skip
PATCHES = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
           "sample_size": 8, "patch_size": 2}  # fmt: skip

ROWS = (
    Row("timm", "inception_v4", {}, image(128)),
    Row("timm", "inception_resnet_v2", {}, image(96)),
    Row("timm", "resnet50", {}, image(64)),
    Row("timm", "resnetrs50", {}, image(64)),
    Row("timm", "skresnet18", {}, image(64)),
    Row("timm", "densenet121", {}, image(64)),
    Row("timm", "dla34", {}, image(64)),
    Row("timm", "hrnet_w18_small", {}, image(64)),
    Row("timm", "cspresnet50", {}, image(64)),
    Row("timm", "tf_efficientnet_b0", {}, image(64)),
    Row("timm", "mobilenetv4_conv_small", {}, image(64)),
    Row("timm", "ghostnet_100", {}, image(64)),
    Row("timm", "mixnet_s", {}, image(64)),
    Row("timm", "nasnetalarge", {}, image(64)),
    Row("timm", "convnext_atto", {}, image(64)),
    Row("timm", "vit_tiny_patch16_224", {"img_size": 64}, image(64)),
    Row("timm", "swin_tiny_patch4_window7_224", {"img_size": 56}, image(56)),
    Row("timm", "mixer_s32_224", {"img_size": 64}, image(64)),
    Row("timm", "levit_128s", {}, image(224)),
    Row("timm", "cait_xxs24_224", {"img_size": 64}, image(64)),
    Row("timm", "twins_svt_small", {"img_size": 64}, image(64)),
    Row("timm", "poolformer_s12", {}, image(64)),
    Row("timm", "coat_lite_tiny", {"img_size": 64}, image(64)),
    Row("timm", "tnt_s_legacy_patch16_224", {"img_size": 64}, image(64)),
    Row("torchvision", "googlenet", {"init_weights": False}, image(64)),
    Row("torchvision", "inception_v3", {"init_weights": False}, image(96)),
    Row("torchvision", "shufflenet_v2_x0_5", {}, image(64)),
    Row("torchvision", "squeezenet1_1", {}, image(64)),
    Row("torchvision", "regnet_y_400mf", {}, image(64)),
    Row("torchvision", "swin_v2_t", {}, image(64)),
    Row("torchvision", "raft_small", {}, lambda n: (*image(128)(n), *image(128)(n)),
        torch.float32),
    Row("torchvision", "deeplabv3_mobilenet_v3_large", {}, image(64)),
    Row("torchvision", "lraspp_mobilenet_v3_large", {}, image(64)),
    Row("torchvision", "fasterrcnn_mobilenet_v3_large_320_fpn", RCNN, images(64)),
    Row("torchvision", "maskrcnn_resnet50_fpn", RCNN, images(64)),
    Row("torchvision", "retinanet_resnet50_fpn", {**ONE_STAGE, "min_size": 64}, images(64)),
    Row("torchvision", "fcos_resnet50_fpn", {**ONE_STAGE, "min_size": 64}, images(64)),
    Row("torchvision", "ssdlite320_mobilenet_v3_large", ONE_STAGE, images(96)),
    Row("transformers", "LlamaForCausalLM", FEW, text),
    Row("transformers", "MistralForCausalLM", {**FEW, "sliding_window": 4}, text),
    Row("transformers", "MixtralForCausalLM", {**FEW, "num_local_experts": 3}, text,
        torch.float32),
    Row("transformers", "Qwen2ForCausalLM", FEW, text),
    Row("transformers", "Qwen3ForCausalLM", FEW, text),
    Row("transformers", "GemmaForCausalLM", FEW, text),
    Row("transformers", "Gemma2ForCausalLM", FEW, text),
    Row("transformers", "PhiForCausalLM", FEW, text),
    Row("transformers", "OlmoForCausalLM", FEW, text),
    Row("transformers", "CohereForCausalLM", FEW, text),
    Row("transformers", "FalconForCausalLM", {**TINY, "ffn_hidden_size": 96}, text),
    Row("transformers", "GPT2LMHeadModel", TINY, text),
    Row("transformers", "GPTNeoXForCausalLM", TINY, text),
    Row("transformers", "GPTJForCausalLM", {**TINY, "rotary_dim": 8}, text),
    Row("transformers", "GPTNeoForCausalLM",
        {**TINY, "num_layers": 2, "num_heads": 4,
         "attention_types": [[["global", "local"], 1]]}, text),
    Row("transformers", "OPTForCausalLM",
        {**TINY, "ffn_dim": 96, "word_embed_proj_dim": 64}, text),
    Row("transformers", "BloomForCausalLM", TINY, text),
    Row("transformers", "MambaForCausalLM", {**TINY, "state_size": 8}, text),
    Row("transformers", "BertForMaskedLM", TINY, text),
    Row("transformers", "RobertaModel", TINY, text),
    Row("transformers", "DistilBertModel",
        {**TINY, "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4}, text),
    Row("transformers", "AlbertModel", {**TINY, "embedding_size": 32}, text),
    Row("transformers", "ElectraModel", {**TINY, "embedding_size": 32}, text),
    Row("transformers", "DebertaV2Model",
        {**TINY, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, text),
    Row("transformers", "ModernBertModel", TINY, text),
    Row("transformers", "T5ForConditionalGeneration", T5, translation),
    Row("transformers", "MT5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu"}, translation),
    Row("transformers", "BartForConditionalGeneration", S2S, translation),
    Row("transformers", "MarianMTModel", S2S, translation),
    Row("transformers", "ViTModel", SEEING, pixels(32)),
    Row("transformers", "DeiTModel", SEEING, pixels(32)),
    Row("transformers", "BeitModel", SEEING, pixels(32)),
    Row("transformers", "Dinov2Model", SEEING, pixels(32)),
    Row("transformers", "SwinModel", WINDOWS, pixels(32)),
    Row("transformers", "SegformerModel", {"hidden_sizes": [16, 32, 32, 32],
        "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]}, pixels(64)),
    Row("transformers", "CLIPModel",
        {"text_config": TINY, "vision_config": SEEING, "projection_dim": 32},
        lambda n: text(n) | pixels(32)(n)),
    Row("transformers", "SiglipModel", {"text_config": TINY, "vision_config": SEEING},
        lambda n: {"input_ids": tokens(n)} | pixels(32)(n)),
    Row("transformers", "WhisperForConditionalGeneration",
        {**S2S, "num_mel_bins": 20, "max_source_positions": 30},
        lambda n: {"input_features": torch.randn(n, 20, 60),
                   "decoder_input_ids": tokens(n)}),
    Row("transformers", "Wav2Vec2Model",
        {**TINY, "conv_dim": [16, 16], "conv_kernel": [8, 4], "conv_stride": [8, 4],
         "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
         "num_conv_pos_embedding_groups": 2},
        lambda n: {"input_values": torch.randn(n, 400 + 32 * n)}),
    Row("transformers", "DetrForObjectDetection", DETR, pixels(64)),
    Row("transformers", "LongformerModel", {**TINY, "attention_window": 4},
        lambda n: {"input_ids": tokens(n, 8)}),
    Row("transformers", "BigBirdModel",
        {**TINY, "max_position_embeddings": 256, "block_size": 4, "num_random_blocks": 1},
        lambda n: {"input_ids": tokens(n, 64)}),
    Row("transformers", "LEDForConditionalGeneration",
        {**S2S, "attention_window": 4, "max_encoder_position_embeddings": 64,
         "max_decoder_position_embeddings": 64},
        lambda n: {"input_ids": tokens(n, 8), "decoder_input_ids": tokens(n)}),
    Row("transformers", "DeepseekV2ForCausalLM", LATENT, text, torch.float32),
    Row("transformers", "DeepseekV3ForCausalLM", LATENT, text, torch.float32),
    Row("transformers", "Llama4ForCausalLM",
        {**FEW, "intermediate_size_mlp": 96, "num_local_experts": 2,
         "attention_chunk_size": 8}, text, torch.float32),
    Row("transformers", "GptOssForCausalLM",
        {**FEW, "num_local_experts": 4, "num_experts_per_tok": 2}, text, torch.float32),
    Row("transformers", "JambaForCausalLM",
        {**FEW, "use_mamba_kernels": False, "num_experts": 2, "attn_layer_period": 2,
         "attn_layer_offset": 1, "mamba_dt_rank": 4}, text, torch.float32),
    Row("transformers", "RecurrentGemmaForCausalLM",
        {**FEW, "lru_width": 64, "num_hidden_layers": 3, "attention_window_size": 8}, text),
    Row("transformers", "FunnelModel",
        {"vocab_size": 99, "d_model": 64, "block_sizes": [1, 1], "num_decoder_layers": 1,
         "n_head": 4, "d_head": 16, "d_inner": 96}, text),
    Row("transformers", "PerceiverModel",
        {"num_latents": 6, "d_latents": 32, "d_model": 16, "num_blocks": 1,
         "num_self_attends_per_block": 2, "num_self_attention_heads": 2,
         "num_cross_attention_heads": 2}, lambda n: {"inputs": torch.randn(n, 9, 16)}),
    Row("transformers", "PatchTSTModel",
        {"num_input_channels": 2, "context_length": 32, "patch_length": 4,
         "patch_stride": 4, "d_model": 32, "ffn_dim": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2}, lambda n: {"past_values": torch.randn(n, 32, 2)}),
    Row("transformers", "DeformableDetrModel", DETR, pixels(64)),
    Row("diffusers", "UNet2DModel",
        {"sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1,
         "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
         "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 8},
        unet(3, 16)),
    Row("diffusers", "UNet2DConditionModel",
        {"sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1,
         "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "norm_num_groups": 8,
         "cross_attention_dim": 32, "attention_head_dim": 8},
        unet(4, 16, encoder_hidden_states=(5, 32))),
    Row("diffusers", "AutoencoderKL",
        {"block_out_channels": (32, 64), "norm_num_groups": 8,
         "down_block_types": ("DownEncoderBlock2D",) * 2,
         "up_block_types": ("UpDecoderBlock2D",) * 2}, image(32)),
    Row("diffusers", "VQModel", {"block_out_channels": (32,), "norm_num_groups": 8},
        image(16)),
    Row("diffusers", "AutoencoderTiny", {}, image(32), torch.float32),
    Row("diffusers", "SD3Transformer2DModel",
        {**PATCHES, "joint_attention_dim": 32, "caption_projection_dim": 32,
         "pooled_projection_dim": 32, "in_channels": 4, "out_channels": 4},
        noisy(4, 8, encoder_hidden_states=(5, 32), pooled_projections=(32,))),
    Row("diffusers", "FluxTransformer2DModel",
        {"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1,
         "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32,
         "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8)}, flux),
    Row("diffusers", "DiTTransformer2DModel", {**PATCHES, "num_embeds_ada_norm": 99},
        lambda n: noisy(4, 8)(n) | {"class_labels": torch.randint(0, 99, (n,))}),
    Row("diffusers", "PixArtTransformer2DModel",
        {**PATCHES, "cross_attention_dim": 32, "caption_channels": 32,
         "use_additional_conditions": False},
        lambda n: noisy(4, 8, encoder_hidden_states=(5, 32))(n)
        | {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}),
    Row("diffusers", "SanaTransformer2DModel",
        {**PATCHES, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2,
         "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 32,
         "patch_size": 1}, noisy(4, 8, encoder_hidden_states=(5, 32))),
    Row("diffusers", "Transformer2DModel",
        {**PATCHES, "in_channels": 8, "norm_num_groups": 4, "cross_attention_dim": 32,
         "patch_size": None},
        lambda n: {"hidden_states": torch.randn(n, 8, 8, 8),
                   "encoder_hidden_states": torch.randn(n, 5, 32)}),
)  # fmt: skip


@contextlib.contextmanager
def lenient():
    """torchvision built for a GPU beside a torch built for a CPU has no compiled operators.

    Its networks can do without them, only its import cannot; `_operators` has others.
    """
    register = torch.library.register_fake

    def skipping(name, *args, **kwargs):
        if str(name).startswith("torchvision::"):
            return lambda function: function
        return register(name, *args, **kwargs)

    torch.library.register_fake = skipping
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.library.register_fake = register


def package(name):
    """The package, imported; ImportError without it."""
    with lenient():
        torchvision = importlib.import_module("torchvision")  # the others look for it later
        _operators(torchvision)
        return importlib.import_module(name)


def _operators(torchvision):
    """The two compiled operators that detectors need, in Python where they are missing."""
    if torchvision.extension._has_ops():
        return
    torchvision.ops.boxes.nms = _nms
    torchvision.ops.poolers.roi_align = _roi_align


def _nms(boxes, scores, threshold):
    kept, left = [], scores.argsort(descending=True)
    while len(left):
        kept.append(left[0])
        iou = importlib.import_module("torchvision").ops.box_iou
        left = left[1:][iou(boxes[left[:1]], boxes[left])[0, 1:] <= threshold]
    return torch.stack(kept) if kept else left


def _roi_align(x, rois, output_size, spatial_scale=1.0, **others):
    """One sample a bin."""
    rows, columns = output_size
    if not len(rois):
        return x.new_empty(0, x.shape[1], rows, columns)
    image, corners = rois[:, 0].long(), rois[:, 1:] * spatial_scale
    x0, y0, x1, y1 = (corners[:, i, None] for i in range(4))
    at = lambda low, high, n: low + (high - low) * (torch.arange(n).to(x) + 0.5) / n
    across = (at(x0, x1, columns) / x.shape[-1] * 2 - 1)[:, None].expand(-1, rows, -1)
    down = (at(y0, y1, rows) / x.shape[-2] * 2 - 1)[:, :, None].expand(-1, -1, columns)
    grid = torch.stack([across, down], -1)
    return F.grid_sample(x[image], grid, padding_mode="border", align_corners=False)


def make(row):
    """The model of a row, in float64 and eval mode, without constant parameters."""
    torch.manual_seed(0)
    home = package(row.package)
    if row.package == "timm":
        model = home.create_model(row.name, **row.settings)
    elif row.package == "torchvision":
        model = home.models.get_model(
            row.name, weights=None, **_backbone(home, row), **row.settings
        )
    elif row.package == "diffusers":
        model = getattr(home, row.name)(**row.settings)
    else:
        kind = getattr(home, row.name)
        model = kind(kind.config_class(**row.settings))
    return livened(model.eval().to(row.dtype))


def _backbone(home, row):
    """For torchvision, which would load the weights of a backbone otherwise."""
    known = inspect.signature(home.models.get_model_builder(row.name)).parameters
    return {"weights_backbone": None} if "weights_backbone" in known else {}


def livened(model):
    """With noise where a fresh model has a constant, as 0: else much would not count."""
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point() and p.numel() > 1 and (p == p.flatten()[0]).all():
                p.copy_(p + 0.2 * torch.randn_like(p))
        for module in model.modules():
            if isinstance(getattr(module, "running_var", None), torch.Tensor):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
    return model


def as_dtype(value, dtype):
    """Inputs as the model has its parameters."""
    if torch.is_tensor(value):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: as_dtype(v, dtype) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(as_dtype(v, dtype) for v in value)
    return value


def leaves(output):
    """All tensors of an output."""
    if torch.is_tensor(output):
        return [output]
    if isinstance(output, dict):
        return [t for v in output.values() for t in leaves(v)]
    if isinstance(output, list | tuple | set):
        return [t for v in output for t in leaves(v)]
    if hasattr(output, "__dict__"):  # a cache, a distribution
        return [t for v in vars(output).values() for t in leaves(v)]
    return []


def call(model, inputs):
    args, kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((), inputs)
    torch.manual_seed(1)
    return model(*args, **kwargs)


def apart(expected, found):
    """The largest relative difference of two outputs; inf where they do not compare."""
    if type(expected) is not type(found):
        return float("inf")
    ours, theirs = leaves(found), leaves(expected)
    if len(ours) != len(theirs) or not theirs:
        return float("inf")
    return max(_apart(*pair) for pair in zip(theirs, ours, strict=True))


def _apart(expected, found):
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, found) else float("inf")
    if not expected.numel():
        return 0.0
    if not torch.equal(expected.isfinite(), found.isfinite()):
        return float("inf")
    a, b = expected.nan_to_num(0, 0, 0), found.nan_to_num(0, 0, 0)
    return ((a - b).abs().max() / a.abs().max().clamp_min(1e-30)).item()


# Rounding in float64 is far below. Some models compute a few things in float32.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


def examine(row):
    """All that is to be seen of one model; ImportError where its package is missing."""
    package(row.package)
    model = make(row)
    torch.manual_seed(2)
    inputs, others = (as_dtype(row.inputs(n), row.dtype) for n in (2, 3))
    with torch.no_grad():
        call(model, inputs)  # some lay something aside at their first call
        start = time.process_time()
        expected = call(model, inputs)
        forward = time.process_time() - start
    start = time.process_time()
    try:
        plan = hfusion.plan(model, inputs)
    except Exception as error:
        return Examined(row, failed=f"{type(error).__name__}: {error}")
    seconds = time.process_time() - start
    fused = plan.apply()
    members = dict.fromkeys(map(_members.member_of, fused.modules()))
    groups = list(dict.fromkeys(member.group for member in members if member))
    planned = {group.members: group.calls for group in plan.groups if group.fused}
    with torch.no_grad():
        error = apart(expected, call(fused, inputs))
    lacking = [group for group in groups if group.rounds != planned[group.names]]
    compared, wrong = [], []
    for what, difference in _differences(row, model, fused, inputs, others):
        compared.append(what)
        wrong += [f"{what}: {difference}"] if difference else []
    if len(groups) != len(planned):
        wrong.append("not as many groups as planned")
    if not error <= TOLERANCE[row.dtype]:
        wrong.append("outputs")
    return Examined(
        row,
        plan.calls,
        len(planned),
        Counter(_kind_of(group) for group in plan.groups if group.reason),
        sum(bool(group.off) for group in groups),
        len(lacking),
        ", ".join(compared),
        sum(len(group.dense) for group in plan.groups if group.fused),
        error,
        seconds,
        forward,
        tuple(wrong),
    )


def _kind_of(group):
    """A reason, without names and numbers; for one layer only, it is not of siblings."""
    reason = group.reason.replace(group.members[0], "…")
    if "of" in reason and " was " in reason:
        reason = reason.split(" was ")[0].split(" of ")[0]
    return f"{'alone: ' * (len(group.members) == 1)}{reason[:70]}"


def _differences(row, model, fused, inputs, others):
    """(what is compared, how it differs or "") for all that the fused model has to keep."""
    was, now = model.state_dict(), fused.state_dict()
    same = list(was) == list(now) and all(_same(now[k], v) for k, v in was.items())
    yield "state", "" if same else "other keys or bits"
    yield "type", "" if type(fused) is type(model) else type(fused).__name__
    bound = TOLERANCE[row.dtype]
    with torch.no_grad():
        far = apart(_of_layers(model, others, fused), _of_layers(fused, others, fused))
        yield "layers", "" if far <= bound else f"{far:.0e}"
        far = apart(call(model, others), call(fused, others))
        yield "batch", "" if far <= bound else f"{far:.0e}"
    if getattr(model, "can_generate", bool)() and "input_ids" in others:
        same = _tokens(model, others).equal(_tokens(fused, others))
        yield "generate()", "" if same else "other tokens"
    if sum(p.numel() for p in model.parameters()) < SMALL:
        yield from _gradients(model, fused, inputs)


def _same(a, b):
    return torch.equal(a, b) if torch.is_tensor(a) else a is b or a == b


def _of_layers(model, inputs, like):
    """What the layers that are fused in `like` return, in the order of their calls."""
    seen, hooks = [], []
    fused = [path for path, m in like.named_modules() if _members.member_of(m)]
    for path in fused:
        keep = lambda layer, given, y, path=path: seen.append({path: y.clone()})
        hooks.append(model.get_submodule(path).register_forward_hook(keep))
    output = call(model, inputs)
    for hook in hooks:
        hook.remove()
    return [*seen, *leaves(output)[:1]]


def _tokens(model, inputs):
    return model.generate(inputs["input_ids"], max_new_tokens=6, do_sample=False)


def _gradients(model, fused, inputs):
    """All gradients, bit for bit; nothing where the original itself has none."""
    try:
        expected = _gradients_of(model, inputs)
    except RuntimeError:
        return
    found = _gradients_of(fused, inputs)
    same = list(expected) == list(found)
    same = same and all(found[p].equal(g) for p, g in expected.items())
    yield "gradients", "" if same else "other"


def _gradients_of(model, inputs):
    outputs = [y for y in leaves(call(model, inputs)) if y.requires_grad]
    weights = [torch.linspace(0.5, 1, y.numel()).to(y).view(y.shape) for y in outputs]
    torch.autograd.backward(outputs, weights)
    found = {p: v.grad.clone() for p, v in model.named_parameters() if v.grad is not None}
    model.zero_grad()
    return found


def table(results):
    """All of them, and the percentages below."""
    lines = [
        f"{'model':<52} {'fused':>5} {'refused':>7} {'plan s':>6} {'run s':>5} {'error':>5}"
    ]
    for one in results:
        name = f"{one.row.package} {one.row.name}"
        lines.append(
            f"{name:<52} {one.fused:>5} {sum((one.refused or {}).values()):>7} "
            f"{one.plan_seconds:>6.2f} {one.forward_seconds:>5.2f} {one.error:>5.0e}"
        )
        calls = [f"{kind} {old} -> {new}" for kind, (old, new) in (one.calls or {}).items()]
        notes = [
            "; ".join(calls),
            *(f"{n} × {reason}" for reason, n in (one.refused or {}).items()),
        ]
        notes += [f"no plan: {one.failed}"] * bool(one.failed)
        notes += [f"{one.dense} parts copied for their readers"] * bool(one.dense)
        notes += [f"{one.switched_off} switched off"] * bool(one.switched_off)
        notes += [f"{one.apart} less often together than planned"] * bool(one.apart)
        notes += [f"WRONG: {what}" for what in one.wrong]
        lines += [f"    {note}" for note in notes if note]
    return "\n".join([*lines, "", *summary(results)])


def summary(results):
    planned = [one for one in results if not one.failed]
    related = [one for one in planned if one.fused or siblings(one)]
    fused = [one for one in related if one.fused]
    reasons = sum((one.refused for one in planned), Counter())
    plans = sum(one.plan_seconds for one in planned)
    runs = sum(one.forward_seconds for one in planned)
    groups, refused = sum(o.fused for o in planned), sum(map(siblings, planned))
    yield f"planned: {_share(planned, results)}"
    yield f"with siblings: {_share(related, planned)}"
    yield f"a group fused, of those with siblings: {_share(fused, related)}"
    off, apart = sum(o.switched_off for o in planned), sum(o.apart for o in planned)
    compared = Counter(what for one in planned for what in one.compared.split(", "))
    yield f"groups: {groups} fused, {refused} refused; of the fused {off} switched off,"
    yield f"    {apart} less often together than planned"
    yield f"compared: outputs of {len(planned)}, " + ", ".join(
        f"{what} of {n}" for what, n in compared.items()
    )
    yield f"models with something wrong: {sum(bool(one.wrong) for one in planned)}"
    yield f"seconds of all plans: {plans:.1f}, of one run each: {runs:.1f}"
    yield from (f"refused {n} ×: {reason}" for reason, n in reasons.most_common())


def siblings(one):
    """How many groups of two or more were refused."""
    return sum(
        n for reason, n in (one.refused or {}).items() if not reason.startswith("alone: ")
    )


def _share(some, of):
    return f"{len(some)} of {len(of)}, {100 * len(some) / max(1, len(of)):.0f}%"


def stored(results):
    """What chapter 7 shows of them, for `records/zoo.json`: a model a line."""
    names = ["torch", *dict.fromkeys(one.row.package for one in results)]
    when = {
        "date": datetime.date.today().isoformat(),
        "versions": {name: metadata.version(name) for name in names},
    }
    models = [
        {
            "package": one.row.package,
            "name": one.row.name,
            "calls": one.calls,
            "fused": one.fused,
            "refused": siblings(one),
            "compared": one.compared.split(", "),
            "wrong": [*one.wrong],
        }
        for one in results
    ]
    lines = ",\n".join(map(json.dumps, models))
    return f'{json.dumps(when)[:-1]}, "models": [\n{lines}\n]}}\n'
