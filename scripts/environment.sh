# Sourced by quickstart.sh and test.sh: makes or reuses the virtual environment in .venv, and puts it on the PATH.
#
#   install_into_venv EXTRAS      e.g. install_into_venv "[dev]"
#
# PYTHON names the interpreter (default: python3). Versions are those of scripts/constraints.txt.

fail() { echo "$*" >&2; exit 1; }

install_into_venv() {
  local extras=$1 python=${PYTHON:-python3} venv=.venv
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    || fail "needs Python 3.11 or later, and '$python' is not; set PYTHON=/path/to/python3.x"
  local stamp
  stamp=$(cat pyproject.toml scripts/constraints.txt <(echo "$extras $("$python" --version)") | sha256sum)
  if [ ! -f "$venv/stamp" ] || [ "$(cat "$venv/stamp")" != "$stamp" ]; then
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    install_torch "$venv/bin/python"
    echo "installing ssv2rt$extras"
    "$venv/bin/python" -m pip install --quiet -c scripts/constraints.txt -e ".$extras"
    echo "$stamp" > "$venv/stamp"
  fi
  export PATH="$PWD/$venv/bin:$PATH"
}

# A machine without a GPU gets the CPU build of torch, a tenth of the size, where one can be had.
install_torch() {
  local python=$1 version
  version=$(sed -n 's/^torch==//p' scripts/constraints.txt)
  "$python" -c "import torch; assert torch.__version__.split('+')[0] == '$version'" 2>/dev/null && return
  echo "installing torch $version"
  if ! nvidia-smi >/dev/null 2>&1; then
    "$python" -m pip install --quiet "torch==$version+cpu" 2>/dev/null && return
    "$python" -m pip install --quiet --retries 0 --timeout 15 "torch==$version" \
      --index-url https://download.pytorch.org/whl/cpu 2>/dev/null && return
  fi
  "$python" -m pip install --quiet "torch==$version"
}
