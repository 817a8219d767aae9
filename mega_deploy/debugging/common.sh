# Read by the scripts beside it, which say in `written_from` where the bundle lay. BUNDLE says where it lies now.
set -o pipefail
bundle=$(realpath -- "${BUNDLE:-$written_from}") || exit 2
[[ -z ${MODEL-} ]] || MODEL=$(realpath -- "$MODEL") || exit 2
[[ -z ${PLUGIN-} ]] || PLUGIN=$(realpath -- "$PLUGIN") || exit 2
cd -- "$(dirname -- "${BASH_SOURCE[0]}")" || exit 2
failed=()
plugins=()
runner=()

missing() { # WHAT EXTRA
    echo "error: $1 is not installed; run: pip install 'mega-deploy[$2]'" >&2
    exit 4
}

need() { # MODULE EXTRA
    command -v polygraphy >/dev/null || missing polygraphy debug
    python3 -c "import $1" 2>/dev/null || missing "$1" "$2"
}

# TensorRT's plugin of LaplaceAttention: PLUGIN names its library, and none if it is empty; else the one that is built
# here is taken, if any. Polygraphy opens plugins before TensorRT, whose library therefore comes first.
find_plugin() {
    if [[ -z ${PLUGIN+set} ]] && command -v mega-deploy >/dev/null; then
        PLUGIN=$(mega-deploy plugins list --json | python3 -c '
import json, sys
rows = json.load(sys.stdin)["plugins"]
print(next((row["library"] for row in rows if row["target"] == "tensorrt"), None) or "")')
    fi
    if [[ -n ${PLUGIN-} ]]; then
        plugins=(--plugins "$(python3 -c '
import glob, tensorrt_libs
print(glob.glob(tensorrt_libs.__path__[0] + "/libnvinfer.so.*")[0])')" "$PLUGIN")
    fi
}

build() { # ENGINE MODEL OPTION...
    local engine=$1 model=$2
    shift 2
    polygraphy convert "$model" --convert-to trt -o "$engine" --strongly-typed "$@" "${plugins[@]}" || exit 1
}

check() { # MODEL CASE OPTION...
    local model=$1 case=$2
    shift 2
    polygraphy run "$model" "${runner[@]}" --load-inputs "$case/inputs.json" --load-outputs "$case/outputs.json" "$@" ||
        failed+=("$case")
}

verdict() {
    if ((${#failed[@]})); then
        printf 'FAILED: %s\n' "${failed[@]}" >&2
        exit 3
    fi
}

# Every value of the good model, computed by onnxruntime without optimizations, is the reference for the other, and what
# a part of it is given. `polygraphy data merge` would give every iteration the values of the last one (0.53.6).
reduce() { # GOOD_MODEL MODEL CASE SNR
    local good model inputs
    good=$(realpath -- "$1") && model=$(realpath -- "$2") && inputs=$(realpath -- "$3/inputs.json") || exit 2
    mkdir -p "reduced/$3" && cd "reduced/$3" || exit 2
    polygraphy run "$good" --onnxrt --providers cpu --graph-optimization-level ORT_DISABLE_ALL \
        --onnx-outputs '*' --load-inputs "$inputs" --save-outputs values.json &&
        python3 -c '
import sys
from polygraphy.comparator import RunResults
from polygraphy.json import load_json, save_json
values = RunResults.load(sys.argv[2])[0][1]
save_json([{**given, **dict(made.items())} for given, made in zip(load_json(sys.argv[1]), values)], sys.argv[3])
' "$inputs" values.json inputs.json &&
        polygraphy debug reduce "$model" -o reduced.onnx --load-inputs inputs.json \
            --check polygraphy run polygraphy_debug.onnx "${runner[@]}" --load-inputs inputs.json \
            --load-outputs values.json --compare snr --snr-threshold "$4" || exit 1
    echo "what is left: $PWD/reduced.onnx"
}
