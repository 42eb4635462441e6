#!/bin/sh
# Joins this machine to the network: one command, nothing asked. Settings: .env here or beside README.md, or flags, as
# `--registry-url http://registry.example.org:9205 --join-token ...`; `--help` shows all.
set -eu
self=$0
while [ -L "$self" ]; do
    target=$(readlink "$self")
    case $target in
    /*) self=$target ;;
    *) self=$(dirname -- "$self")/$target ;;
    esac
done
here=$(CDPATH='' cd -- "$(dirname -- "$self")/.." && pwd -P)
"$here/scripts/environment.sh" >&2

named=''
for word; do
    case $word in --env-file | --env-file=*) named=yes ;; esac
done
if [ -z "$named" ] && [ ! -e .env ] && [ -f "$here/.env" ]; then set -- --env-file "$here/.env" "$@"; fi
exec "$here/.venv/bin/dagi-agent" bootstrap --auto "$@"
