# shellcheck shell=sh
# The variables of `env` in the spec. Sourced by provisiond and provision.sh.

# Lines NAME=VALUE. PAM reads them at each login, and `limited` for each step. They are not shell: a value may have any character that
# is special there.
environment=/run/kimbox/env

# What the host gives to this start alone: a line NAME=VALUE for each secret variable.
secret_values=/run/credentials/@system/kimbox.environment

# place_environment FOLDER: writes the variables of the manifest in that folder. Fails if the host has given no value for a secret one,
# and sets $missing to its name.
place_environment() {
	[ -e "$1/environment" ] || [ -e "$1/secrets" ] || [ -s "$environment" ] || return 0
	[ -d /run/kimbox ] || mkdir -p /run/kimbox
	rm -f "$environment.new"
	(umask 077 && : >"$environment.new")
	[ ! -e "$1/environment" ] || cat "$1/environment" >>"$environment.new"
	if [ -e "$1/secrets" ]; then
		while read -r missing; do
			grep -s -m 1 "^$missing=" "$secret_values" >>"$environment.new" || return 1
		done <"$1/secrets"
	fi
	mv -f "$environment.new" "$environment"
}

# with_environment: a text for `sh -c` that sets the variables from descriptor 5, and runs its arguments. No argument of a program has
# a value: all users may read those.
# shellcheck disable=SC2016,SC2034 # for the inner shell; used by those who source this
with_environment='while IFS= read -r line <&5; do export "$line"; done; unset line; exec 5<&-; exec "$@"'
