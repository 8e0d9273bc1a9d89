"""Names that the registries hold, as plain text, so that help and errors need not import torch.

A test holds each tuple against its registry. The registries have the last word: a model, optimizer or schedule
that you add there works at once; add its name here too, and `--help` shows it.
"""

MODELS = (
    "ResNet18",
    "ResNet50",
    "ResNet101",
    "ResNeXt50",
    "ResNeXt101",
    "ResNeSt50",
    "ResNeSt101",
    "ResNeSt200",
    "Res2Net50",
    "Res2Net101",
    "iResNet50",
    "iResNet101",
    "iResNet152",
    "iResNet200",
    "iResNet1001",
    "EfficientNet-B0",
    "EfficientNet-B1",
    "EfficientNet-B2",
    "EfficientNet-B3",
    "EfficientNet-B4",
    "EfficientNet-B5",
    "EfficientNet-B6",
    "EfficientNet-B7",
    "EfficientNet-Lite0",
    "EfficientNet-Lite1",
    "EfficientNet-Lite2",
)
OPTIMIZERS = ("sgd", "adam", "adamw", "radam", "lookahead", "ranger", "lamb", "lion", "muon")
SCHEDULERS = ("cos", "none", "step", "poly", "onecycle", "20e", "100e", "1x", "2x")
TRANSFORMS = ("resize", "light", "none", "albumentations", "randaugment", "trivialaugment", "augmix")
LOSSES = ("ce", "ohem", "focal", "bce")
HEADS = ("linear", "cosine", "arcface", "subcenter")
POOLS = ("avg", "gem")
FITS = ("squash", "crop", "pad")
TTAS = ("none", "flip", "x8", "fivecrop", "multiscale")
BLENDS = ("mean", "logits", "geometric", "rank", "greedy", "optimal")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
