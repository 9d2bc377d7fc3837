#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes: the executor's tests on CUDA, decode and prefill speed, a
# profile, and one scenario compared with its simulation. Results go to $OUT (default results/gpu).
#     bash bench/gpu.sh          on a machine with a CUDA GPU and this package installed with its test extra
#     bash bench/gpu.sh --dry    the same steps on a CPU with tiny shapes
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=.
PYTHON=${PYTHON:-python}
OUT=${OUT:-results/gpu}
mkdir -p "$OUT"
if [ "${1:-}" = "--dry" ]; then
    device=cpu; dry=--dry; model=scenarios/published/llama-56m/config.json; dtype=float32
    grid="--max-loras 2 --ranks 8,16 --max-num-seqs 4 --max-num-batched-tokens 64 --context 64 --phases 10 --seconds 20"
    engine="max_loras=4 max_cpu_loras=4 max_num_seqs=8 num_gpu_blocks=400 max_num_batched_tokens=64"
    load="--set workload.duration_s=3 --set workload.arrivals.poisson=2 --set adapters.count=2"
else
    device=cuda; dry=; model=llama-3.1-8b; dtype=bfloat16
    grid="--max-loras 32 --ranks 16 --max-num-seqs 128 --max-num-batched-tokens 4096 --context 2048 --phases 40 --seconds 100"
    engine="max_loras=32 max_cpu_loras=64 max_num_seqs=128 num_gpu_blocks=20000 max_num_batched_tokens=4096"
    load="--set workload.duration_s=40 --set workload.arrivals.poisson=12 --set adapters.count=48 --set adapters.ranks=16"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$OUT/card.txt"
fi
$PYTHON -c "import torch, triton; print('torch', torch.__version__, 'triton', triton.__version__)" | tee -a "$OUT/card.txt"
echo "== correct"
LORATORY_TEST_DEVICE=$device timeout 180 $PYTHON -m pytest -q tests/executor/test_device.py | tee "$OUT/tests.txt"
echo "== fast"
timeout 150 $PYTHON bench/gpu_speed.py $dry --out "$OUT" | tee "$OUT/speed.txt"
echo "== calibrated"
timeout 180 $PYTHON -m loratory profile "$model" --random --device $device --dtype $dtype --threads 1 $grid --name "loratory-$device" \
    --out "$OUT/profile.json" | tee "$OUT/profile.txt"
common="executor-near --set model=$model --set cost.profile=$OUT/profile.json $load"
common="$common --set executor.device=$device --set executor.dtype=$dtype"
for setting in $engine; do common="$common --set engine.$setting"; done
$PYTHON -m loratory run $common --out "$OUT/sim" > "$OUT/sim.txt"
for repeat in 1 2; do
    $PYTHON -m loratory run $common --on executor --out "$OUT/real-$repeat" > "$OUT/real-$repeat.txt"
done
$PYTHON -m loratory compare "$OUT/sim" "$OUT/real-1" "$OUT/real-2" | tee "$OUT/compare.txt"
$PYTHON -m loratory replay "$OUT/real-1" | tee "$OUT/replay.txt"
