#!/usr/bin/env bash
# Be one of the two nodes of compose.yaml: shape the link, then train. node.sh NODE_RANK
set -euo pipefail
tc qdisc add dev eth0 root tbf rate "${RATE:-100mbit}" burst 64kb latency 50ms
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} GLOO_SOCKET_IFNAME=eth0
exec setpriv --reuid gsdist --regid gsdist --init-groups env HOME=/home/gsdist \
    torchrun --nnodes 2 --node-rank "$1" --nproc-per-node 1 --master-addr node0 --master-port 29500 \
    -m gsdist train classification --data digits --model resnet8 --reducer gs-sgd --epochs 5 \
    --run-dir /tmp/digits
