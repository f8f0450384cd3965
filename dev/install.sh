#!/bin/sh
# Install the server or the mole from this folder, with nothing fetched:
#
#     sh install.sh server|mole [FOLDER]      (default: /opt/cluster-dash-server, /opt/cluster-dash-mole)
#
# It makes a virtual environment there, or brings the one that is there to this version. PYTHON=/path/to/python3.11 names
# the Python; else the newest suitable one on the PATH is taken. SERVES.txt says which ones this archive has parts for.
set -eu
half=${1:-}
case $half in
    server) floor=11 ;;
    mole) floor=10 ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
folder=${2:-/opt/cluster-dash-$half}
suits() {
    "$1" -c "import sys; sys.exit(not (3, $floor) <= sys.version_info < (3, 15))" 2>/dev/null
}
if [ -n "${PYTHON:-}" ]; then
    suits "$PYTHON" || { echo "$PYTHON is no Python 3.$floor to 3.14, which the $half needs" >&2; exit 1; }
else
    for PYTHON in python3.14 python3.13 python3.12 python3.11 python3.10 python3 none; do
        ! suits "$PYTHON" || break
    done
    if [ "$PYTHON" = none ]; then
        echo "no Python 3.$floor to 3.14 on the PATH, which the $half needs: see \"An old Python\" in setup.md" >&2
        exit 1
    fi
fi
# pip runs from its wheel: some distributions pack ensurepip apart. All that is installed is checked against its hash.
again=--force-reinstall
[ -x "$folder/bin/python" ] || { again=; "$PYTHON" -m venv --without-pip "$folder"; }
"$folder/bin/python" -m zipfile -e "$here"/wheels/pip-*.whl "$folder/pip"
# shellcheck disable=SC2086 # nothing or one word
PYTHONPATH=$folder/pip "$folder/bin/python" -m pip --isolated --disable-pip-version-check install --quiet $again \
    --no-index --find-links "$here/wheels" --require-hashes -r "$here/$half.lock"
rm -r "$folder/pip"
cp "$here/$half.lock" "$folder/installed.lock"    # the last step: who compares sees that all was done
version=$("$folder/bin/cluster-dash-$half" --version)
echo "installed: $version in $folder"
