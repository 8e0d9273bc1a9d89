#!/usr/bin/env bash
# AliProducts (50,030 products, 2.5 million images) on one GPU of 24 GiB: lists, two networks, a correction for the long
# tail, and a submission of both. NOT RUN: neither the images nor such a GPU were there. The memory is computed.
#
#   hardware    one GPU of 24 GiB with bf16; 16 CPU cores, 64 GiB of memory, 120 GB of disk for images of 256 px (an estimate)
#   wall time   not known. A first run with --debug prints images/s; the progress line tells the time left
#   memory      of a step, GiB, from `python -m tools.memory --num_classes 50030 --precision bf16` (torch 2.14.1):
#                 ResNeSt50, -b 256, EMA      7.5 at 128 px, 13.6 at 192 px, 17.5 at 224 px
#                 EfficientNet-B3, -b 128, EMA    5.4 at 128 px, 9.6 at 192 px, 12.3 at 224 px
#                 the classifier alone, -b 256    3.2 (ResNeSt50)
#               ResNeSt101 with the template's -b 24 at 224 px takes 4.5; 21.6, which is nine tenths of 24, hold 214 images
#   accuracy    not known
#   versions    torch 2.14.1, timm 1.0.31
set -euo pipefail
cd "$(dirname "$0")/.."

# datasets/aliproducts_photos holds the challenge's files: train.json, val.json, train/, val/ and test/.
# Lists. The doctor names files that do not decode, copies, and images that training and validation share.
python datasets/prepare.py coco datasets/aliproducts_photos/train.json --root datasets/aliproducts_photos/train --val 0 --out datasets/aliproducts
python datasets/prepare.py coco datasets/aliproducts_photos/val.json --root datasets/aliproducts_photos/val --part val --classes datasets/aliproducts/classes.txt --test datasets/aliproducts_photos/test --out datasets/aliproducts
python -m tools.doctor datasets/aliproducts/train.txt datasets/aliproducts/val.txt datasets/aliproducts/test.txt --out results/doctor
python datasets/clean.py datasets/aliproducts/train.txt --doctor results/doctor/doctor.csv --out datasets/aliproducts/train_clean.txt

# Two networks, from small images to large ones. --on_bad_image skip: one broken file does not end a night.
python train.py --tag ali_resnest50 --model ResNeSt50 --data_root datasets/aliproducts --train_list datasets/aliproducts/train_clean.txt --cache disk:datasets/aliproducts_cache --cache_size 256 --scale_schedule 1:128,7:192,11:224 --epochs 14 -b 256 --optimizer sgd --lr 0.05 --warmup 0.05 --scheduler cos --smooth 0.1 --transform light --ema 0.9998 --precision bf16 --on_bad_image skip --metric top1
python train.py --tag ali_effnet_b3 --model EfficientNet-B3 --data_root datasets/aliproducts --train_list datasets/aliproducts/train_clean.txt --cache disk:datasets/aliproducts_cache --cache_size 256 --scale_schedule 1:128,7:192,11:224 --epochs 14 -b 128 --optimizer sgd --lr 0.025 --warmup 0.05 --scheduler cos --smooth 0.1 --transform light --ema 0.9998 --precision bf16 --on_bad_image skip --metric top1

# The classifier alone, with every class drawn alike (Kang et al., 2020): the challenge counts the mean over classes.
python train.py --tag ali_resnest50_head --model ResNeSt50 --load checkpoints/ali_resnest50/best.pt --data_root datasets/aliproducts --train_list datasets/aliproducts/train_clean.txt --cache disk:datasets/aliproducts_cache --cache_size 256 --scale 224 --epochs 2 -b 256 --freeze -1 --balance class --optimizer sgd --lr 0.01 --precision bf16 --on_bad_image skip --metric mean_class_accuracy
python train.py --tag ali_effnet_b3_head --model EfficientNet-B3 --load checkpoints/ali_effnet_b3/best.pt --data_root datasets/aliproducts --train_list datasets/aliproducts/train_clean.txt --cache disk:datasets/aliproducts_cache --cache_size 256 --scale 224 --epochs 2 -b 256 --freeze -1 --balance class --optimizer sgd --lr 0.01 --precision bf16 --on_bad_image skip --metric mean_class_accuracy

python eval.py --tag ali --load checkpoints/ali_resnest50_head/best.pt checkpoints/ali_effnet_b3_head/best.pt --data_root datasets/aliproducts --tta flip
python submit.py --tag ali --load checkpoints/ali_resnest50_head/best.pt checkpoints/ali_effnet_b3_head/best.pt --data_root datasets/aliproducts --tta flip
