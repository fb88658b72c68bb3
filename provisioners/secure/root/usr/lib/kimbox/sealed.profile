# shellcheck shell=sh
# Login shells of a sealed box: no core dumps, and an idle shell ends after 15 minutes (CIS 5.4.3.2).
# shellcheck disable=SC3045 # dash and bash have it
ulimit -c 0
TMOUT=900
readonly TMOUT
export TMOUT
