#!/usr/bin/env bash
# EfficientNet-Lite0 from ImageNet weights, one epoch on 12,000 images of Fashion-MNIST at 64 pixels: `make demo`'s training.
#
#   hardware    2 cores of an AMD EPYC with AVX-512 and bf16, nothing else running; no GPU
#   wall time   97 s for all five commands of `make demo`, of which these are three
#   accuracy    89.96 % top-1 on the 10,000 validation images (1 run, seed 42; 89.47 % on a Xeon with AMX, which rounds otherwise)
#   versions    torch 2.14.1, timm 1.0.31
set -euo pipefail
cd "$(dirname "$0")/.."

python datasets/prepare.py fashion-mnist --out datasets/fashion-mnist --train 12000
python train.py --tag fashion_mnist_lite0 --model EfficientNet-Lite0 --data_root datasets/fashion-mnist --scale 64 --epochs 1 -b 64 --lr 0.002 --warmup 0.1 --transform none --gpu -1 --overwrite
python eval.py --tag fashion_mnist_lite0 --load checkpoints/fashion_mnist_lite0/best.pt --data_root datasets/fashion-mnist -b 100 --gpu -1
