"""The models by name. A model of your own: copy a folder, import it here, add a line to `models`."""

import functools
from collections.abc import Callable

from network.base_model import BaseModel
from network.EfficientNet.model import Model as EfficientNet
from network.iResNet.model import Model as iResNet
from network.loading import load_into
from network.Res2Net.model import Model as Res2Net
from network.ResNeSt.model import Model as ResNeSt
from network.ResNet.model import Model as ResNet
from network.ResNeXt.model import Model as ResNeXt
from network.Timm.model import Model as Timm
from utils.errors import unknown_name

__all__ = ["BaseModel", "get_model", "load_into", "models"]

models: dict[str, type[BaseModel]] = {
    "ResNet18": ResNet,
    "ResNet50": ResNet,
    "ResNet101": ResNet,
    "ResNeXt50": ResNeXt,
    "ResNeXt101": ResNeXt,
    "ResNeSt50": ResNeSt,
    "ResNeSt101": ResNeSt,
    "ResNeSt200": ResNeSt,
    "Res2Net50": Res2Net,
    "Res2Net101": Res2Net,
    "iResNet50": iResNet,
    "iResNet101": iResNet,
    "iResNet152": iResNet,
    "iResNet200": iResNet,
    "iResNet1001": iResNet,
    "EfficientNet-B0": EfficientNet,
    "EfficientNet-B1": EfficientNet,
    "EfficientNet-B2": EfficientNet,
    "EfficientNet-B3": EfficientNet,
    "EfficientNet-B4": EfficientNet,
    "EfficientNet-B5": EfficientNet,
    "EfficientNet-B6": EfficientNet,
    "EfficientNet-B7": EfficientNet,
    "EfficientNet-Lite0": EfficientNet,
    "EfficientNet-Lite1": EfficientNet,
    "EfficientNet-Lite2": EfficientNet,
}


def get_model(name: str) -> Callable[..., BaseModel]:
    """What builds the model called `name`: `get_model("ResNet50")(opt)`; `timm:<name>` is any model of timm.

    Raises:
        UserError: no such model; the message has the near names, and all.
    """
    if name.startswith("timm:"):
        return functools.partial(Timm, name=name)
    if name not in models:
        raise unknown_name("model", name, [*models, "timm:<any name of timm>"])
    return functools.partial(models[name], name=name)
