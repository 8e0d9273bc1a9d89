#!/usr/bin/env bash
# Few images, fine differences: 2,624 solar cells, functional or defective, 5 folds. The settings that version 1 had
# without any flag, against crops of nearly the whole cell without blanked boxes, which may hide the defect, and a
# higher learning rate. EfficientNet-Lite0, 96 pixels.
#
#   hardware    one core of two of an AMD EPYC (OMP_NUM_THREADS=1), other work on the second; no GPU
#   wall time   936 s for all 10 trainings
#   accuracy    top-1 on the held-out fold, mean of 5 (lowest to highest): 71.6 % (65.1 to 76.2) plain, 75.4 % (72.5 to 78.5) with the
#               whole cell. The difference within a fold is 3.8 points, 95 % interval 1.1 to 6.5 (Student's t, n = 5, seed 42)
#   versions    torch 2.14.1, timm 1.0.31
set -euo pipefail
cd "$(dirname "$0")/.."

for fold in 1 2 3 4 5; do
python datasets/prepare.py elpv --out datasets/elpv_$fold --folds 5 --fold $fold
python train.py --tag elpv_plain_$fold --model EfficientNet-Lite0 --data_root datasets/elpv_$fold --scale 96 --epochs 2 -b 24 --lr 0.0005 --transform resize --optimizer adamw --scheduler cos --val_freq 100 --no-fit_head --gpu -1 --overwrite
python train.py --tag elpv_whole_$fold --model EfficientNet-Lite0 --data_root datasets/elpv_$fold --scale 96 --epochs 2 -b 32 --lr 0.001 --warmup 0.1 --transform resize --zoom 0.9 --cutout 0 --blur 0 --hue 0 --saturation 0 --optimizer adamw --scheduler cos --val_freq 100 --no-fit_head --gpu -1 --overwrite
done
python -m tools.compare elpv_plain_1 elpv_plain_2 elpv_plain_3 elpv_plain_4 elpv_plain_5 elpv_whole_1 elpv_whole_2 elpv_whole_3 elpv_whole_4 elpv_whole_5 --out results/elpv.html
