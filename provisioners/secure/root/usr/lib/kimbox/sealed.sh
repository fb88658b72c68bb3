# shellcheck shell=sh
# What the scripts of a sealed box share: where its role, its rules and its secrets are. Sourced.
# shellcheck disable=SC2034 # used by those who source it

# On /persistent, for root alone:
#
#   answers.env       KIMBOX_ROLE, KIMBOX_SITE, KIMBOX_USERNAME: what was answered to `kimbox secure`
#   policy.env        what the spec says of the role: KIMBOX_INBOUND, KIMBOX_OPERATOR, KIMBOX_REMOVED ...
#   outbound          a line for each host that may be reached: host, port, protocol
#   known_hosts       the host keys of the gateway, under the name kimbox-gateway
#   operator_keys     who may log in as the operator
#   credentials.enc   the credentials, under the data key: the host has it, and gives it at each start
#
# /persistent/kimbox/secured, beside the manifests, says that all of it is there.
sealed=/persistent/secure
secured=/persistent/kimbox/secured

# The credentials in the clear, in memory alone.
credentials=/run/kimbox/credentials

# What the host gives at a start (systemd.exec(5)).
given=/run/credentials/@system

# A site's credentials: files of them, and KiB in all.
CREDENTIALS=64
CREDENTIALS_KIB=1024

# is_name HOST: whether it is a name, and no address
is_name() {
	case $1 in
	*:*) return 1 ;;
	*[!0-9.]*) return 0 ;;
	esac
	return 1
}

# has_names: whether the spec gives hosts by name
has_names() {
	while read -r host _; do
		if is_name "$host"; then return 0; fi
	done <"$sealed/outbound"
	return 1
}

# unlock FOLDER: the credentials into a new folder, root's alone. Fails where the data key is not the one they were locked with.
unlock() {
	rm -rf "$1"
	mkdir -m 0700 "$1" &&
		openssl enc -d -aes-256-ctr -pbkdf2 -iter 1 -md sha256 -pass "file:$given/kimbox.data_key" -in "$sealed/credentials.enc" \
			2>/dev/null | tar -x -f - -C "$1" --no-same-owner 2>/dev/null &&
		[ -e "$1/.whole" ] && rm -f "$1/.whole"
}

# lock FOLDER KEYFILE TARGET: the files of a folder, locked. An iteration is enough: the key is random, and no password.
lock() {
	: >"$1/.whole" &&
		(cd "$1" && tar -c -f - --owner=root:0 --group=root:0 --mtime=@0 -- * .whole) |
		openssl enc -aes-256-ctr -pbkdf2 -iter 1 -md sha256 -salt -pass "file:$2" -out "$3"
}
