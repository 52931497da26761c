# Sourced by the other scripts: makes the virtual environment once and puts it first on the PATH.
set -eu
cd "$(dirname "$0")/.."

say() { printf '\033[2m%s\033[0m\n' "$*" >&2; }

environment=${EDGECOSINE_VENV:-.venv}
stamp=$environment/.edgecosine-$(cat pyproject.toml scripts/constraints.txt | cksum | tr ' ' '-')

if [ ! -e "$stamp" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "$python is older than Python 3.11; set PYTHON to a newer one" >&2; exit 1; }
    say "making the environment $environment (once; torch is large, this can take minutes)"
    "$python" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --quiet --upgrade pip
    "$environment/bin/python" -m pip install --quiet --quiet --constraint scripts/constraints.txt \
        --editable '.[models,http,broker,lab,dev]'
    rm -f "$environment"/.edgecosine-*
    touch "$stamp"
    say "environment ready"
fi
PATH=$(cd "$environment/bin" && pwd):$PATH
export PATH
