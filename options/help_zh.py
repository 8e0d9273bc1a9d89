"""The help of every flag in Chinese, for README_zh.md; `python -m tools.docs` writes it there.

A text goes by its flag's `dest`; where a script means something else by it, by "<script>.<dest>" (submit.py: as eval.py).
"""

from options import choices

HELP = {
    # ------------------------------------------------------------------------------------------ run
    "tag": "实验名，也是各输出文件夹的名字",
    "config": "YAML 文件，每行 `选项: 值`；命令行上给出的优先",
    "gpu": "用哪块显卡；-1 为 CPU",
    "seed": "一切随机性的唯一来源",
    "deterministic": "只用每次结果逐位相同的算法（CUDA 上较慢）",
    "workers": "读图的线程或进程数；0 为在两步之间读",
    "loader": "process（进程）：用于你自己以纯 Python 写的增强",
    "worker_timeout": "多少秒没有一个 batch 就算卡住；0 为从不",
    "debug": "每个 epoch 只跑最前面几个 batch",
    "checkpoint_dir": "权重写到 <DIR>/<tag>",
    "log_dir": "log.txt 与 TensorBoard 文件写到 <DIR>/<tag>",
    "result_dir": "评分与预测写到 <DIR>/<tag>",
    # ------------------------------------------------------------------------------------------ data
    "data_root": "列表文件所在的文件夹",
    "train_list": "每行：图片路径、空格、标签；默认为 --data_root 下的 train.txt",
    "val_list": "每行：图片路径、空格、标签；默认为 --data_root 下的 val.txt",
    "test_list": "每行一个图片路径；默认为 --data_root 下的 test.txt",
    "batch_size": "每个 batch 的图片数",
    "scale": "送入网络的正方形边长",
    "eval.scale": "送入网络的正方形边长；默认与检查点一致",
    "fit": "评估时图片怎样变成正方形：直接缩放（squash）、取中央（crop）或补边（pad）",
    "eval.fit": "图片怎样变成正方形；默认与检查点一致",
    "num_classes": "默认为 classes.txt 的行数，或最大标签加一；--resume 时取检查点的",
    "on_bad_image": "开始之前发现图片缺失时：停下（error），或不用它（skip）",
    "eval.on_bad_image": "开始之前发现图片缺失时：停下（error），或跳过（skip）：记下名字、单独计数，结果里仍占一行",
    "check_files": "开始之前检查列表里的每个文件是否存在",
    "cache": "none、ram 或 disk:DIR：把每张图缩小后存一次，供所有 epoch 与各次运行使用",
    "cache_size": "缓存图片的短边；默认取 --scale 与 --zoom 所需",
    "cache_format": "raw：无需解码，约占八倍空间",
    "cache_quality": "缓存 JPEG 的质量",
    # ------------------------------------------------------------------------------------------ model
    "model": f"{', '.join(choices.MODELS)}，或 timm:<name> （timm 的任何模型）",
    "eval.model": "与检查点核对；只有纯 state dict 才必须给出",
    "pretrained": "从 ImageNet 权重开始",
    "weights_dir": "先在这个文件夹里找 ImageNet 权重文件",
    "load": "从这些权重开始（检查点，或纯 state dict）",
    "eval.load": "一个检查点，或取平均的几个；可以是不同的网络",
    "resume": "接着训练：优化器与 epoch 一并恢复；没有 --load 时取该 tag 的 last.pt",
    "drop": "分类器之前的 dropout",
    "drop_path": "随机深度（stochastic depth），用于 timm 中支持它的网络",
    # ------------------------------------------------------------------------------------------ training
    "epochs": "训练多少个 epoch；2x 这样的表自带 epoch 数",
    "optimizer": ", ".join(choices.OPTIMIZERS),
    "lr": "最高学习率",
    "weight_decay": "不作用于归一化层与偏置；adamw、lion、muon 默认 0.05，其余默认 1e-4",
    "momentum": "用于 sgd",
    "scheduler": f"{', '.join(choices.SCHEDULERS)}，或 Nx（N 任取）",
    "warmup": "开头这些 epoch 里学习率线性上升",
    "min_lr": "cos、poly、onecycle 结束时的学习率",
    "step_size": "--scheduler step：每过这么多个 epoch 降到十分之一",
    "precision": "auto：CUDA 上为 bf16 或 fp16，CPU 上取 fp32 与 bf16 中较快者",
    "compile": "编译网络（torch.compile）：起步慢，每步更快",
    "sync_bn": "多进程时，批归一化按整个批而非各进程的部分计算",
    "eval.precision": "auto：与训练该检查点时相同",
    "clip_grad": "按 --clip_mode 裁剪梯度",
    "clip_mode": "--clip_grad 限制：整个梯度的范数（norm）、每个元素（value），或每个单元的梯度范数占其权重范数的份额（agc；0.01）",
    "accumulate": "每隔多少个 batch 更新一次参数",
    "ema": "保留权重的滑动平均，两者都验证，取较好的",
    "swa": "另从这个 epoch 起，把每个 epoch 结束时的权重取平均",
    "sam": "以此为半径的锐度感知（SAM）步（0.05）；耗时加倍",
    # ------------------------------------------------------------------------------------------ fine-tuning
    "freeze": "冻结网络的起始层（stem）与前 N 个阶段；-1：除分类器外全部冻结",
    "head_lr": "分类器的学习率为 --lr 的 F 倍",
    "layer_decay": "每一层的学习率为后一层的 D 倍",
    # ------------------------------------------------------------------------------------------ loss
    "loss": ", ".join(choices.LOSSES),
    "smooth": "标签平滑",
    "ohem_ratio": "ohem：只计最难的这一部分样本",
    "focal_gamma": "focal：对容易样本压低的程度",
    "mixup": "把成对的图片与标签混合",
    "cutmix": "把一张图的一块贴到另一张上",
    # ------------------------------------------------------------------------------------------ augmentation
    "balance": "各类均匀地抽取，或按类大小的平方根抽取",
    "repeat_aug": "一个 batch 里每张图出现 K 次，每次重新增强",
    "scale_schedule": "从给定的 epoch 起改用的训练尺寸，例如 1:128,11:192,16:224",
    "transform": f"{', '.join(choices.TRANSFORMS)}；resize 有从 --zoom 到 --cutout_size 的各项",
    "zoom": "随机裁剪至少保留原图的这一份额",
    "crop_ratio": "裁剪框的宽高比介于此值与其倒数之间",
    "hflip": "左右翻转的概率",
    "vflip": "上下翻转的概率",
    "transpose": "行列互换的概率",
    "rotate": "随机旋转，最多这么多度",
    "brightness": "亮度最多增减这么多",
    "contrast": "对比度最多增减这么多",
    "saturation": "饱和度最多增减这么多",
    "hue": "色相最多转动色环的这一份额",
    "jitter": "上述四种颜色变化（一起）的概率",
    "blur": "轻微模糊的概率",
    "cutout": "抹去一个方块的概率",
    "cutout_size": "方块的最大边长，占图片边长的份额",
    "ra_ops": "randaugment：每张图做几种操作",
    "ra_magnitude": "randaugment：每种操作的强度",
    "erase": "用随机噪声盖住一个方块的概率，排在任何 --transform 之后",
    "erase_area": "方块的最大面积，占图片面积的份额",
    # ------------------------------------------------------------------------------------------ records
    "val_freq": "每 N 个 epoch 验证一次，最后一个之后也验证",
    "keep": "保留最近 N 个 epoch 的检查点；另有 last.pt 与 best.pt",
    "save_freq": "此外每 N 个 epoch 的检查点和最后一个也保留",
    "histograms": "每个 epoch 把权重和梯度的直方图写入 TensorBoard",
    "save_minutes": "在一个 epoch 之内也每隔这么多分钟写一次 last.pt",
    "max_nan": "梯度含非有限值的一步被跳过；连续 N 步后回到 last.pt 一次，再发生则停止；0：不检查",
    "max_bad": "一个 epoch 里读不出的图片超过这一份额就停下",
    # ------------------------------------------------------------------------------------------ inference
    "weights": "每个 --load 一个权重；默认相等",
    "tta": "对多个视图取平均：左右镜像（flip）、八种翻转与转置（x8）、五个裁剪（fivecrop）、三种尺寸（multiscale）",
    "save_probs": "另写 probs.npz：文件名、类别、概率",
    "temperature": "logits 除以它：none、一个数，或 ckpt（eval.py --calibrate 存入的值）",
    # ------------------------------------------------------------------------------------------ evaluation
    "report": "写 report.html：一个可看可发的单页",
    "compare": "同一列表另一次评测的 predictions.csv：McNemar 检验，以及变了的图片",
    "calibrate": "在此列表上拟合温度，存入权重文件",
    "resamples": "95 % 区间的自助重采样次数；0：不算",
    # ------------------------------------------------------------------------------------------ submission, clear
    "out": "CSV 写到哪里；默认 results/<tag>/submission.csv",
    "clear.tag": "要清理的实验；只清理与此名完全相同的",
    "restore": "从回收站恢复该 tag（有多份时取最新的）",
    "rm": "彻底删除，连同回收站里该 tag 的各份",
}

GROUPS = {
    "run": "运行",
    "data": "数据",
    "model": "模型",
    "training": "训练",
    "fine-tuning": "微调",
    "loss": "损失",
    "augmentation": "数据增强",
    "records": "记录",
    "inference": "推理",
    "evaluation": "评测",
    "submission": "提交",
    "clear": "清理",
}


def help_zh(script: str, dest: str) -> str:
    """The Chinese help of a flag of `script` ("train", "eval", "submit", "clear"). Raises KeyError where there is none."""
    like = "eval" if script == "submit" else script
    return HELP.get(f"{like}.{dest}") or HELP[dest]
