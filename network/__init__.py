"""The models by name. Ours are the table in options/choices.py.

A model of your own: copy a folder, import it here, and add a line to `models`.
"""

import functools
from collections.abc import Callable

from network.Airbench.model import Model as Airbench
from network.backbones import check_timm_name
from network.base_model import BaseModel
from network.EfficientNet.model import Model as EfficientNet
from network.iResNet.model import Model as iResNet
from network.Res2Net.model import Model as Res2Net
from network.ResNeSt.model import Model as ResNeSt
from network.ResNet.model import Model as ResNet
from network.ResNeXt.model import Model as ResNeXt
from network.Timm.model import Model as Timm
from options.choices import MODELS
from utils.errors import unknown_name

__all__ = ["BaseModel", "get_model", "models"]

FAMILIES: dict[str, type[BaseModel]] = {
    "ResNet": ResNet,
    "ResNeXt": ResNeXt,
    "ResNeSt": ResNeSt,
    "Res2Net": Res2Net,
    "iResNet": iResNet,
    "EfficientNet": EfficientNet,
    "Airbench": Airbench,
}
models: dict[str, type[BaseModel]] = {
    **{name: FAMILIES[family] for name, (family, _) in MODELS.items()},
}


def get_model(name: str) -> Callable[..., BaseModel]:
    """Return what builds the model called `name`: `get_model("ResNet50")(opt)`; `timm:<name>` is any model of timm.

    Raises:
        UserError: there is no such model. The message suggests near names, and lists all, those of timm apart.
    """
    if name.startswith("timm:"):
        check_timm_name(name.removeprefix("timm:"))
        return functools.partial(Timm, name=name)
    if name not in models:
        raise unknown_name("model", name, [*models, "timm:<any name of timm>"], "--model ")
    return functools.partial(models[name], name=name)
