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

photos=${1:?Give the folder of the challenge, with train.json, val.json, train/, val/ and test/}
lists=datasets/aliproducts
cache=disk:datasets/aliproducts_cache

# Lists. The doctor names files that do not decode, copies, and images that training and validation share.
python datasets/prepare.py coco "$photos/train.json" --root "$photos/train" --val 0 --out $lists
python datasets/prepare.py coco "$photos/val.json" --root "$photos/val" --part val --classes $lists/classes.txt --test "$photos/test" --out $lists
python -m tools.doctor $lists/train.txt $lists/val.txt $lists/test.txt --out results/doctor
python datasets/clean.py $lists/train.txt --doctor results/doctor/doctor.csv --out $lists/train_clean.txt

# Two networks, from small images to large ones. --on_bad_image skip: a night does not end at one broken file.
python train.py --tag ali_resnest50 --model ResNeSt50 --data_root $lists --train_list $lists/train_clean.txt --cache $cache --cache_size 256 --scale_schedule 1:128,7:192,11:224 --epochs 14 -b 256 --optimizer sgd --lr 0.05 --warmup 0.05 --scheduler cos --smooth 0.1 --transform light --ema 0.9998 --precision bf16 --on_bad_image skip --metric top1
python train.py --tag ali_effnet_b3 --model EfficientNet-B3 --data_root $lists --train_list $lists/train_clean.txt --cache $cache --cache_size 256 --scale_schedule 1:128,7:192,11:224 --epochs 14 -b 128 --optimizer sgd --lr 0.025 --warmup 0.05 --scheduler cos --smooth 0.1 --transform light --ema 0.9998 --precision bf16 --on_bad_image skip --metric top1

# The classifier alone, with each class drawn alike (Kang et al., 2020): the challenge counts the mean over classes.
for tag in ali_resnest50 ali_effnet_b3; do
  model=$([ $tag = ali_resnest50 ] && echo ResNeSt50 || echo EfficientNet-B3)
  python train.py --tag ${tag}_head --model "$model" --load checkpoints/$tag/best.pt --data_root $lists --train_list $lists/train_clean.txt --cache $cache --cache_size 256 --scale 224 --epochs 2 -b 256 --freeze -1 --balance class --optimizer sgd --lr 0.01 --precision bf16 --on_bad_image skip --metric mean_class_accuracy
  python eval.py --load checkpoints/${tag}_head/best.pt --data_root $lists --tta flip
done

python submit.py --tag ali --load checkpoints/ali_resnest50_head/best.pt checkpoints/ali_effnet_b3_head/best.pt --data_root $lists --tta flip
