#!/usr/bin/env bash
# Runs every example on a network that is trained for a moment, and compares what they say with effnet-eval:
#
#     pip install torch timm safetensors pillow onnxruntime
#     examples/run.sh            # PYTHON names another python3
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export EFFNET_CUDA=${EFFNET_CUDA:-skip}
cargo build --release --quiet
cargo build --release --quiet --example read_weights
bin=target/release

"$bin/effnet-train" --demo --device cpu --max-steps 120 --report=false --out "$work/run" > /dev/null
"$bin/effnet-eval" "$work/run" --export "$work/b0.safetensors" > /dev/null
"$bin/effnet-eval" "$work/run" --export "$work/b0-bytes.onnx" --bytes-in > /dev/null
images=(tests/fixtures/images/*.expected.png)

"$bin/examples/read_weights" "$work/b0.safetensors" | tail -1
"$python" examples/timm_predict.py "$work/b0.safetensors" "${images[@]}" > "$work/timm"
"$python" examples/onnx_predict.py "$work/b0-bytes.onnx" "${images[@]}" > "$work/onnx"
"$bin/effnet-eval" "$work/run" --json --topk 10 "${images[@]}" 2> /dev/null > "$work/effnet"
"$python" - "$work" <<'END'
import json, pathlib, sys
work = pathlib.Path(sys.argv[1])
ours = [json.loads(line) for line in (work / "effnet").read_text().splitlines()]
for other in ["timm", "onnx"]:
    theirs = [line.split("\t") for line in (work / other).read_text().splitlines()]
    far = []
    for one, (image, name, share) in zip(ours, theirs, strict=True):
        assert one["image"] == image, (other, one, image)
        shares = {found["class"]: found["probability"] for found in one["classes"]}
        # Two classes may be equally probable; then either may be named.
        far.append(max(abs(shares[name] - float(share)), max(shares.values()) - shares[name]))
    far.sort()
    # Pillow rounds to bytes between its two passes of resizing, and a network that was trained for a moment feels that: by
    # 0.056 for one image of strong colours. Images that are not resized differ in the digits that are printed.
    assert far[len(far) // 2] <= 2e-3 and far[-1] <= 1e-1, (other, far)
    print(f"{other}: {len(ours)} images; probabilities differ by {far[len(far) // 2]:.4f} in the middle, at most {far[-1]:.4f}")
END
