#!/usr/bin/env bash
# Everything in one go: environment, data sets, training, report. Works from any folder; see --help.
set -euo pipefail
unset CDPATH

usage() {
  cat <<'TEXT'
usage: run_all.sh [options]

  --model-size SIZE    tiny, small, base or large (default: base)
  --batch-size N       rows that are computed at a time (default: 8)
  --epochs N           epochs of all three stages together (default: 100)
  --lr RATE            learning rate (default: 1e-4)
  --data-root FOLDER   folder of the data sets (default: data beside this script)
  --output-dir FOLDER  folder for models, logs and reports (default: outputs beside this script)
  --resume FILE        file of outputs/checkpoints to go on from
  --datasets NAME ...  data sets to download (default: coco clotho audiocaps); or all
  --skip-existing      do not hash again what was downloaded before
  --skip-setup         leave the environment as it is
  --skip-download      download nothing
  --demo               embedded data, nothing to download
  --set KEY=VALUE      any setting of docs/config.md, may be given several times
  --help               show this

Without options, config.yaml beside this script says how to train.
TEXT
}

refuse() {
  echo "error: $1" >&2
  usage >&2
  exit 2
}

absolute() {
  case $1 in
    /*) printf '%s' "$1" ;;
    *) printf '%s/%s' "$PWD" "$1" ;;
  esac
}

training=()
download=()
datasets=(coco clotho audiocaps)
setup=yes
fetch=yes

while (($#)); do
  case $1 in
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
  esac
  case $1 in
    --model-size | --batch-size | --epochs | --lr | --set)
      (($# > 1)) || refuse "$1 needs a value"
      training+=("$1" "$2")
      shift 2
      ;;
    --data-root | --output-dir | --resume)
      (($# > 1)) || refuse "$1 needs a value"
      path=$(absolute "$2")
      training+=("$1" "$path")
      if [[ $1 == --data-root ]]; then download+=("$1" "$path"); fi
      shift 2
      ;;
    --datasets)
      shift
      datasets=()
      while (($#)) && [[ $1 != --* ]]; do
        datasets+=("$1")
        shift
      done
      ((${#datasets[@]})) || refuse "--datasets needs a name"
      ;;
    --skip-existing)
      download+=("$1")
      shift
      ;;
    --skip-setup)
      setup=no
      shift
      ;;
    --skip-download)
      fetch=no
      shift
      ;;
    --demo)
      fetch=no
      training+=("$1")
      shift
      ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) refuse "unknown option: $1" ;;
  esac
done

cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

step=start
code=0
run() { # NAME COMMAND...: code 0, or 3 where that is no failure; anything else ends the script with the step's name
  step=$1
  shift
  echo "== $step"
  code=0
  "$@" || code=$?
  if ((code == 0)) || { ((code == 3)) && [[ $step == download ]]; }; then return; fi
  echo "run_all.sh: the step '$step' ended with exit code $code" >&2
  exit "$code"
}

if [[ $setup == yes ]]; then run setup bash setup_environment.sh; fi

python=venv/bin/python
if [[ ! -x $python ]]; then
  python=${PYTHON:-python3}
  echo "no venv/ beside this script; $python is used"
fi

if [[ $fetch == yes ]]; then
  run download "$python" download_datasets.py --datasets "${datasets[@]}" ${download[@]+"${download[@]}"}
  if ((code == 3)); then
    echo "Part of the data has to be had by hand, as said above; training goes on with what is there"
  fi
fi

run training "$python" run_training.py ${training[@]+"${training[@]}"}
