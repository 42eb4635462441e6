#!/bin/sh
# Makes .venv with what requirements.txt pins, once, and anew when that has changed; says in a sentence why it cannot.
# make and join-network.sh both call it. PYTHON names the Python to use, where the first that fits should not be.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
venv=$here/.venv
ready=$venv/.ready # holds where it was made, as an environment cannot be moved

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

was_made_here() {
    [ ! -s "$ready" ] || [ "$(cat "$ready")" = "$here" ]
}

is_ready() {
    [ -x "$venv/bin/python" ] && [ -f "$ready" ] && was_made_here &&
        [ -z "$(find "$here/requirements.txt" "$here/pyproject.toml" -newer "$ready")" ]
}

# On macOS without developer tools /usr/bin/python3 is no Python, and opens a window when it is called.
is_a_stand_in() {
    [ "$(uname)" = Darwin ] && [ "$1" = /usr/bin/python3 ] && ! xcode-select -p >/dev/null 2>&1
}

# Sets `python`; else `old` and `bare` to what was found and does not do.
find_python() {
    python='' old='' bare=''
    for name in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 \
        /opt/homebrew/bin/python3 /usr/local/bin/python3; do
        path=$(command -v "$name" 2>/dev/null) || continue
        if is_a_stand_in "$path"; then continue; fi
        if ! is_new_enough "$path"; then
            old=${old:-$path}
        elif ! "$path" -c 'import ensurepip, venv' 2>/dev/null; then
            bare=${bare:-$path}
        else
            python=$path
            return
        fi
    done
}

explain_missing_python() {
    if [ -n "$bare" ]; then
        version=$("$bare" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        fail "$bare cannot make environments: its venv and ensurepip are missing." \
            "Debian, Ubuntu: sudo apt install python3-venv (or python$version-venv). Then run this again."
    fi
    found=${old:+"; $old is $("$old" -c 'import platform; print(platform.python_version())' 2>&1 || echo unusable)"}
    fail "Python 3.11 or newer is needed, and none was found$found." \
        "Debian 12, Ubuntu 24.04 or newer: sudo apt install python3 python3-venv. macOS: brew install python." \
        "Others: https://www.python.org/downloads/. One that is not on the PATH: PYTHON=/path/to/python3 $0"
}

# What went wrong, of what a tool printed, and what to do.
explain() {
    case $1 in
    *'No space left'*) fail "The disk is full: $venv needs about 500 MB. Make room and run this again." ;;
    *'Read-only file system'* | *'Permission denied'*)
        fail "$venv cannot be written. Run this as the user who owns it, or remove it and run this again." ;;
    *'name resolution'* | *'Name or service not known'* | *'nodename nor servname'* | *unreachable* | \
        *'onnection refused'* | *'timed out'* | *'No route to host'* | *'onnection reset'* | *'Max retries'*)
        fail "The packages cannot be fetched: there is no way to pypi.org from here, or not at this moment." \
            "Behind a proxy set HTTPS_PROXY, with a mirror PIP_INDEX_URL. Then run this again." ;;
    *CERTIFICATE_VERIFY_FAILED*)
        fail "The packages cannot be fetched: pypi.org's certificate is not trusted here. Is the clock right?" \
            "Behind a proxy with an authority of its own set PIP_CERT to that authority's file." ;;
    *) fail "The packages cannot be installed:" "$(printf '%s\n' "$1" | tail -n 5)" ;;
    esac
}

run() {
    output=$("$@" 2>&1 </dev/null) || explain "$output"
}

pip_install() {
    run "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --retries 2 "$@"
}

if is_ready; then exit 0; fi
find_python
if [ -z "$python" ]; then explain_missing_python; fi
echo "Installing into $venv (once; a minute or two) ..."
clear=''
if [ -e "$venv" ] && { ! was_made_here || ! is_new_enough "$venv/bin/python"; }; then clear=--clear; fi
run "$python" -m venv $clear "$venv"
export PIP_USER=0
cd "$here"
pip_install --require-hashes -r requirements.txt
pip_install --no-deps --no-build-isolation -e .
printf '%s' "$here" >"$ready" || explain 'No space left'
