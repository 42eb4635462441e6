#!/bin/sh
# Joins this machine to the network: one command, nothing asked. Settings: .env or flags.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
make --silent --no-print-directory -C "$here" install
exec "$here/.venv/bin/dagi-agent" bootstrap --auto "$@"
