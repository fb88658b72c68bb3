# shellcheck shell=sh
# Paths and functions of a sealed box's scripts: where its role, its rules and its secrets are. Sourced.
# shellcheck disable=SC2034 # used by those who source it

# On /persistent, readable by root only:
#
#   answers.env       KIMBOX_ROLE, KIMBOX_SITE, KIMBOX_USERNAME: the answers given to `kimbox secure`
#   policy.env        what the spec says of the role: KIMBOX_INBOUND, KIMBOX_OPERATOR, KIMBOX_REMOVED ...
#   outbound          a line for each host that may be reached: host, port, protocol
#   known_hosts       the host keys of the gateway, under the name kimbox-gateway
#   operator_keys     the keys with which the operator logs in
#   cache.sha256      the files of the caches and their digests, as they were when the box was secured
#   credentials.enc   the credentials, encrypted with the data key, which the host keeps and passes at each start
#
# /persistent/kimbox/secured, beside the manifests, exists if all of these are complete.
sealed=/persistent/secure
secured=/persistent/kimbox/secured

# The files of the caches, as sha256sum(1) prints them. The host knows the digest of this list.
cache_list=$sealed/cache.sha256

# The decrypted credentials, in memory only.
credentials=/run/kimbox/credentials

# The credentials that the host passes at a start (systemd.exec(5)).
given=/run/credentials/@system

# Limits on a site's credentials: number of files, and KiB in all.
CREDENTIALS=64
CREDENTIALS_KIB=1024

# is_name HOST: succeeds if it is a name, not an address
is_name() {
	case $1 in
	*:*) return 1 ;;
	*[!0-9.]*) return 0 ;;
	esac
	return 1
}

# has_names: succeeds if the spec gives hosts by name
has_names() {
	while read -r host _; do
		if is_name "$host"; then return 0; fi
	done <"$sealed/outbound"
	return 1
}

# unlock FOLDER: decrypts the credentials into a new folder, for root only. Fails if the data key is not the one that locked them.
unlock() {
	rm -rf "$1"
	mkdir -m 0700 "$1" &&
		openssl enc -d -aes-256-ctr -pbkdf2 -iter 1 -md sha256 -pass "file:$given/kimbox.data_key" -in "$sealed/credentials.enc" \
			2>/dev/null | tar -x -f - -C "$1" --no-same-owner --no-same-permissions 2>/dev/null &&
		find "$1" ! -type d ! -type f -delete && # root in the box knew the key, and could write other credentials
		[ -e "$1/.whole" ] && rm -f "$1/.whole"
}

# lock FOLDER KEYFILE TARGET: encrypts the files of a folder. One iteration is enough: the key is random, not a password.
lock() {
	: >"$1/.whole" &&
		(cd "$1" && tar -c -f - --owner=root:0 --group=root:0 --mtime=@0 -- * .whole) |
		openssl enc -aes-256-ctr -pbkdf2 -iter 1 -md sha256 -salt -pass "file:$2" -out "$3"
}
